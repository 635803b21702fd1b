"""No part of a training step makes the host wait for the device.

What would is told by the operations that a step dispatches: those that read a number from the
device, or whose output's size depends on values. Host and device are one here, so they are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainers.runs import CLASSES, SPEC, classify_run, context, mtm_run
from trainers.checkpoint import Checkpoints
from trainers.config import Run
from trainers.loop import _Trainer
from trainers.models.mtm import MTM
from trainers.step import ClassifyTask, MtmTask
from trainers.task import Task

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
}


class Watch(TorchDispatchMode):
    """Counts what waits; `index` with a mask of booleans is a hidden `nonzero`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
        if func in WAITING or (
            masks and any(i is not None and i.dtype == torch.bool for i in args[1])
        ):
            self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


def tasks(out: Path, **loop: Any) -> dict[str, Callable[[], tuple[Run, Task]]]:
    def mtm() -> tuple[Run, Task]:
        run = mtm_run(out, **loop)
        return run, MtmTask(run, SPEC)

    def classify() -> tuple[Run, Task]:
        run = classify_run(out, **loop)
        run = replace(run, optim=replace(run.optim, layer_decay=0.7, clip=0.5))
        return run, ClassifyTask(run, SPEC, CLASSES)

    return {"mtm": mtm, "classify": classify}


@pytest.mark.parametrize("kind", ["mtm", "classify"])
def test_a_step_waits_for_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A check of masks that only a CPU makes, as it costs no wait there.
    monkeypatch.setattr(MTM, "_check", lambda *_: None)
    run, task = tasks(tmp_path, ema=0.9, grad_accum=2, precision="bf16")[kind]()
    checkpoints = Checkpoints(run.out, 1)
    trainer = _Trainer(run, context(), task, checkpoints)
    batches = iter(trainer._stream)
    trainer._train_step(next(batches))
    with Watch() as watch:
        trainer._train_step(next(batches))
    trainer.close()
    checkpoints.close()
    assert not watch.seen


def test_the_watch_sees_what_waits() -> None:
    with Watch() as watch:
        x = torch.arange(4.0)
        float(x.sum())
        x[x > 1]
    assert len(watch.seen) == 2
