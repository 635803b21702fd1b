"""No part of a training step makes the host wait for the device.

What would is told by the operations that a step dispatches: those that read a number from the
device, or whose output's size depends on values. Host and device are one here, so they are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from services.plan.draws import Draws
from services.tokens.codebook import token_spec
from services.tokens.tokenizer import load_tokenizer
from tests.fake_gpu import INDEXED, READS
from tests.trainers.picture_runs import (
    place,
    tokenadapt_run,
    tokenizer_run,
    vqgan_run,
    write_pictures,
    write_tokenizer,
)
from tests.trainers.runs import CLASSES, SPEC, classify_run, context, mtm_run
from trainers.checkpoint import Checkpoints
from trainers.config import Run
from trainers.loop import _Trainer
from trainers.models.mtm import MTM
from trainers.picture_config import ViewConfig
from trainers.picture_streams import open_pictures
from trainers.pixel_step import PixelTask, normalised
from trainers.recipes.pixels import pixels_tiny
from trainers.step import ClassifyTask, MtmTask
from trainers.task import Task, WorkerContext
from trainers.tokenadapt_step import TokenAdaptTask
from trainers.tokenizer_config import CodesRun
from trainers.tokenizer_step import TokenizerTask
from trainers.views import draw_views

aten = torch.ops.aten


class Watch(TorchDispatchMode):
    """Counts what waits; `index` with a mask of booleans is a hidden `nonzero`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS or (
            func in INDEXED and any(i is not None and i.dtype == torch.bool for i in args[1])
        ):
            self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


class Copies(TorchDispatchMode):
    """Counts copies from the host that wait, to the device that stands in for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.waited = self.others = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in (aten._to_copy.default, aten.copy_.default):
            source = args[1] if func is aten.copy_.default else args[0]
            free = args[2:] == (True,) or (kwargs or {}).get("non_blocking", False)
            if source.device != found.device:
                self.waited += not free
                self.others += free
        return found


Case = tuple[Run, WorkerContext, Task]


def mtm(folder: Path, **loop: Any) -> Case:
    run = mtm_run(folder / "run", **loop)
    return run, context(), MtmTask(run, SPEC)


def classify(folder: Path, **loop: Any) -> Case:
    run = classify_run(folder / "run", **loop)
    run = replace(run, optim=replace(run.optim, layer_decay=0.7, clip=0.5))
    return run, context(), ClassifyTask(run, SPEC, CLASSES)


def codes(make: Callable[..., CodesRun], folder: Path, **loop: Any) -> Case:
    run = make(folder / "run", write_pictures(folder / "images"), **loop)
    model = run.model.network()
    spec = token_spec(model.grid, model.codes, model.channels, model.image_size)
    return run, open_pictures(run, place(), spec), TokenizerTask(run, torch.device("cpu"))


def tokenadapt(folder: Path, **loop: Any) -> Case:
    file, images = write_tokenizer(folder / "tokenizer"), write_pictures(folder / "images")
    run, tokenizer = tokenadapt_run(folder / "run", images, file, **loop), load_tokenizer(file)
    worker = open_pictures(run, place(), tokenizer.spec)
    return run, worker, TokenAdaptTask(run, tokenizer, torch.device("cpu"))


CASES: dict[str, Callable[..., Case]] = {
    "mtm": mtm,
    "classify": classify,
    "tokenizer": partial(codes, tokenizer_run),
    "vqgan": partial(codes, vqgan_run),
    "tokenadapt": tokenadapt,
}


@pytest.mark.parametrize("kind", CASES)
def test_a_step_waits_for_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A check of masks that only a CPU makes, as it costs no wait there.
    monkeypatch.setattr(MTM, "_check", lambda *_: None)
    run, worker, task = CASES[kind](tmp_path, ema=0.9, grad_accum=2, precision="bf16")
    checkpoints = Checkpoints(run.out, 1)
    trainer = _Trainer(run, worker, task, checkpoints)
    batches = iter(trainer._stream)
    trainer._train_step(next(batches))
    trainer._step += 1  # the first gives a tokenizer's codes their places
    second = next(batches)
    with Watch() as watch:
        trainer._train_step(second)
    if close := getattr(batches, "close", None):
        close()
    trainer.close()
    checkpoints.close()
    assert not watch.seen


def test_draws_of_pictures_are_copied_without_a_wait() -> None:
    tiny, rows = pixels_tiny(), np.arange(8)
    images = torch.rand(8, 3, tiny.model.image_size, tiny.model.image_size, device="meta")
    size = tiny.model.image_size, tiny.model.image_size
    draws = Draws(0, 0, rows)
    with Copies() as copies:
        normalised(PixelTask(tiny, CLASSES).augmented(images, rows, 0)[0])
        draw_views(ViewConfig(), draws, size, 4).to(images.device).apply(images, size)
    assert (copies.waited, copies.others >= 10) == (0, True)
    with Copies() as copies:
        torch.zeros(2).to("meta")
        torch.zeros(2, device="meta").copy_(torch.zeros(2))
    assert (copies.waited, copies.others) == (2, 0)


def test_the_watch_sees_what_waits() -> None:
    with Watch() as watch:
        x = torch.arange(4.0)
        float(x.sum())
        x[x > 1]
    assert len(watch.seen) == 2
