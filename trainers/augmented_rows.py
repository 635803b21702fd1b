"""Rows of tokens augmented as if they were pictures: naively, or through TokenAdapt.

For looking at what an augmentation does to a trained model (paper, Figure A); training augments in
the stream (`services.stream.augmentation`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from services.augment.tokenadapt import TokenAdapt
from services.errors import InvalidInputError
from services.plan.draws import Draws
from trainers.evaluation import Batch, Rows
from trainers.picture_config import ViewConfig
from trainers.tokenadapt_compare import Pairs
from trainers.views import draw_views

Kind = Literal["none", "naive", "tokenadapt"]


def augmented(
    rows: Rows,
    kind: Kind,
    size: tuple[int, int],
    *,
    adapt: TokenAdapt | None,
    views: ViewConfig,
    seed: int,
    device: torch.device,
) -> Rows:
    """The same rows, whole grids, each flipped, turned and cropped by draws of its own.

    kind: "naive" does to the tokens' vectors what is meant for pixels, "tokenadapt" goes through f
    and g; the draws are the same. size: (h, w) of the result. views: what is drawn; nothing is
    mixed, so labels stay.
    """
    alone = replace(views, mixup_probability=0.0)
    codebook = rows.codebook.to(device)
    model = Pairs(adapt.to(device).eval()) if adapt is not None else None

    @torch.inference_mode()
    def batches() -> Iterator[Batch]:
        first = 0
        for batch in rows.open():
            if batch.inputs.is_floating_point():
                raise InvalidInputError(
                    "these rows are DCT coefficients, which TokenAdapt does not read: augment rows"
                    " of tokens, or look at them as they stand"
                )
            count, (height, width) = len(batch.label), batch.inputs.shape[1:]
            numbers = np.arange(first, first + count, dtype=np.int64)
            first += count
            drawn = draw_views(alone, Draws(seed, 0, numbers), (height, width), count).to(device)
            emb = codebook.embed(batch.inputs.to(device))
            if kind == "naive":
                ids = codebook.quantise(drawn.apply(emb, size))
            else:
                assert model is not None
                ids = model(emb, drawn).argmax(-1).view(-1, *size)
            yield Batch(ids, batch.label)

    return replace(rows, open=batches)
