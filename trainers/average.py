"""The moving average of a run's weights: what gets validated and exported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3

_WARMUP = 9.0
"""At step t the decay is at most t / (t + 9), so that the average is over the last ninth or so of
the run up to there (as in TensorFlow's ExponentialMovingAverage). With the decay alone, 0.99996 of
the published recipe, a run of 37,000 steps would end with a fifth of its initial weights."""


def build_average(model: nn.Module, decay: float, *, buffers: bool) -> ModelEmaV3:
    """An average that is told the step, from 1, with each `update(model, step)`.

    decay: the highest, reached after 9 / (1 - decay) steps. buffers: whether the model's buffers
    are averaged, too, rather than copied.
    """
    # With the model, see make_blocks.
    from timm.utils.model_ema import ModelEmaV3

    return ModelEmaV3(
        model,
        decay=decay,
        use_warmup=True,
        warmup_gamma=_WARMUP,
        warmup_power=1.0,
        exclude_buffers=not buffers,
    )
