"""Small runs for the tests of this room: a stream from a list, a toy task, and a context."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from services.stream.batch import StreamBatch
from services.wire.seit import v1 as wire
from trainers.config import (
    ClassifierModelConfig,
    ClassifyRun,
    ClusterConfig,
    LoopConfig,
    MtmModelConfig,
    MtmRun,
    OptimConfig,
)
from trainers.data_config import AugmentConfig, DataConfig, OrderConfig
from trainers.task import PlainTask, WorkerContext

SPEC = wire.TokenSpec(
    grid_height=4, grid_width=4, codes=11, channels=6, image_height=16, image_width=16
)
CLASSES = ("a", "b", "c")
ROWS = 22  # of the split: three steps of 8 rows, two rows of the last step do not exist
BATCH = 8
PER_EPOCH = -(-ROWS // BATCH)

SMALL = {"width": 16, "depth": 2, "heads": 2}


def classify_run(out: Path, **loop: Any) -> ClassifyRun:
    """A classifier's run on CPU of two epochs, `loop` changed as given."""
    return ClassifyRun(**_common(out, loop, "finetune"), model=ClassifierModelConfig(**SMALL))


def mtm_run(out: Path, **loop: Any) -> MtmRun:
    """A pre-training run on CPU of two epochs, `loop` changed as given."""
    model = MtmModelConfig(**SMALL, decoder_width=8, decoder_depth=1, decoder_heads=2)
    return MtmRun(**_common(out, loop, "mtm"), model=model)


def _common(out: Path, loop: dict[str, Any], recipe: Any) -> dict[str, Any]:
    base = LoopConfig(epochs=2, precision="float32", checkpoint_every=2, validate_every=1)
    return {
        "out": str(out),
        "data": DataConfig(),
        "order": OrderConfig(global_batch=BATCH, block=2, lanes=2, window_shards=1),
        "augment": AugmentConfig(recipe=recipe, crop=4),
        "optim": OptimConfig(base_lr=0.01, base_batch=BATCH, warmup_epochs=1, smoothing=0.1),
        "loop": replace(base, **loop),
        "cluster": ClusterConfig(no_ray=True),
    }


def make_batch(step: int, rank: int = 0, world: int = 1) -> StreamBatch:
    """A rank's share of a step: ids and labels are functions of the row."""
    epoch, inside = divmod(step, PER_EPOCH)
    share = BATCH // world
    rows = inside * BATCH + rank * share + np.arange(share, dtype=np.int64)
    rows[rows >= ROWS] = -1
    order = torch.Generator().manual_seed(7)
    table = torch.randint(SPEC.codes, (ROWS + 1, 4, 4), generator=order)
    label = torch.from_numpy(np.where(rows < 0, 0, rows % len(CLASSES)))
    return StreamBatch(
        step=step,
        epoch=epoch,
        rows=rows,
        row_epochs=np.full(len(rows), epoch, np.int64),
        inputs=table[torch.from_numpy(rows)],
        label=label,
        label_b=label.flip(0),
        mix=torch.from_numpy(np.where(rows < 0, 1.0, 0.25 + 0.5 * (rows % 2))).float(),
        weight=torch.from_numpy((rows >= 0).astype(np.float32)),
    )


class ListStream:
    """Steps [start, stop) in order, from a list."""

    steps_per_epoch = PER_EPOCH

    def __init__(self, batches: list[StreamBatch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[StreamBatch]:
        return iter(self._batches)

    def cursor(self, step: int) -> bytes:
        return json.dumps({"step": step}).encode()

    def flow(self) -> wire.Flow:
        return wire.Flow(stream="list", state="running")


def context(
    epochs: int = 2,
    *,
    rank: int = 0,
    world: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
    node_leaves: Callable[[], bool] = lambda: False,
    change: Callable[[StreamBatch], StreamBatch] = lambda batch: batch,
) -> WorkerContext:
    """A worker over the lists above; `change` may spoil a batch."""

    def open_train(saved: bytes | None) -> ListStream:
        start = json.loads(saved)["step"] if saved else 0
        steps = range(start, epochs * PER_EPOCH)
        return ListStream([change(make_batch(step, rank, world)) for step in steps])

    return WorkerContext(
        rank=rank,
        world=world,
        device=torch.device("cpu"),
        spec=SPEC,
        classes=CLASSES,
        open_train=open_train,
        open_validation=lambda: [make_batch(step, rank, world) for step in range(PER_EPOCH)],
        report=lambda figures: None,
        should_stop=should_stop,
        node_leaves=node_leaves,
    )


class ToyTask(PlainTask):
    """A linear classifier of the tokens' histogram, with dropout: the loop's parts in miniature."""

    name = "toy"
    figures = ("loss", "rows")
    best = "loss"
    higher = False

    def __init__(self, dropout: float = 0.2) -> None:
        self._dropout = dropout

    def build_model(self, *, fresh: bool) -> nn.Module:
        return nn.Sequential(
            nn.Linear(SPEC.codes, 8), nn.Tanh(), nn.Dropout(self._dropout), nn.Linear(8, 3)
        )

    def check(self, batch: StreamBatch) -> None:
        assert len(batch) == len(batch.inputs)

    def loss(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        return (self._rows(model, batch) * batch.weight).sum()

    def evaluate(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        rows = self._rows(model, batch)
        return (torch.stack([rows, torch.ones_like(rows)]) * batch.weight).sum(1)

    def _rows(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        counts = nn.functional.one_hot(batch.inputs.flatten(1), SPEC.codes).float().mean(1)
        return nn.functional.cross_entropy(model(counts), batch.label, reduction="none")


def recorded(out: Path) -> list[dict[str, float]]:
    """The training figures of a run, one entry a step."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if "grad_norm" in entry]
