"""What the loop is given: a place with ways to its data, and what to compute on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from services.stream.batch import StreamBatch
from services.wire.seit import v1 as wire


class Stream(Protocol):
    """This rank's share of each step, in order, from the position it was opened at."""

    steps_per_epoch: int

    def __iter__(self) -> Iterator[StreamBatch]: ...

    def cursor(self, step: int) -> bytes:
        """The position after `step` steps."""
        ...

    def flow(self) -> wire.Flow:
        """What flowed since it was opened."""
        ...


@dataclass
class WorkerContext:
    """What a worker is given: its place among the others, and ways to its data.

    world > 1: torch.distributed is initialised. spec, classes: of the dataset.
    open_train: the training stream, from a saved position or from the start.
    open_validation: this rank's share of the whole split, finite.
    report: tells figures to whoever started the run; all ranks call it equally often.
    should_stop: a signal asked for an end: checkpoint, without a validation, and return.
    node_leaves: a node of the run is about to go: checkpoint at every reading, and where a batch is
        waited for, to lose few steps. All ranks hear of both, sooner or later.
    """

    rank: int
    world: int
    device: torch.device
    spec: wire.TokenSpec
    classes: Sequence[str]
    open_train: Callable[[bytes | None], Stream]
    open_validation: Callable[[], Iterable[StreamBatch]]
    report: Callable[[Mapping[str, float]], None]
    should_stop: Callable[[], bool]
    node_leaves: Callable[[], bool] = lambda: False


class Task(Protocol):
    """What is trained. Sums are over rows, each times the row's weight.

    name: for the progress line. figures: names of what `evaluate` sums, the loss first.
    best: figure of a validation that picks the best checkpoint; higher: whether more is better.
    """

    @property
    def name(self) -> str: ...

    @property
    def figures(self) -> tuple[str, ...]: ...

    @property
    def best(self) -> str: ...

    @property
    def higher(self) -> bool: ...

    def build_model(self, *, fresh: bool) -> nn.Module:
        """A model on the CPU, drawn from torch's generator.

        fresh: it begins a run, so it starts from the weights that the run names, if any; else a
        checkpoint is about to be loaded into it.
        """
        ...

    def check(self, batch: StreamBatch) -> None:
        """Raise InvalidInputError for a batch, in host memory, that cannot be trained on."""
        ...

    def loss(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        """() float32: weighted sum of the rows' losses."""
        ...

    def evaluate(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        """(len(figures),) float32: weighted sums of the figures."""
        ...

    def updated(self, model: nn.Module, step: int, total: int, world: int) -> None:
        """After the optimizer's update of `step` (from 0) of `total`, on every rank."""
        ...

    def validated(self, world: int) -> Mapping[str, float]:
        """After a validation, on every rank: its figures that are no means over rows."""
        ...

    def lacks(self, out: str) -> bool:
        """At the end of a run: whether `export` needs a validation first, as a file is missing in
        `out` and this process made none."""
        ...

    def export(self, model: nn.Module, out: str, figures: Mapping[str, float]) -> None:
        """At the end of a run, on rank 0: files for others in `out`, besides model.safetensors.

        figures: the last ones.
        """
        ...


def better(value: float, best: float, *, higher: bool) -> bool:
    """Whether a figure is better than the best so far; NaN is worse than any number, so that a
    first validation that gave none does not stand as the best for ever."""
    if math.isnan(value) or math.isnan(best):
        return not math.isnan(value)
    return value > best if higher else value < best


class PlainTask:
    """The parts of a `Task` that most tasks leave empty."""

    def updated(self, model: nn.Module, step: int, total: int, world: int) -> None:
        """Nothing but the optimizer changes the weights."""

    def validated(self, world: int) -> Mapping[str, float]:
        """All figures are means over rows."""
        return {}

    def lacks(self, out: str) -> bool:
        """What is written follows from the weights and the last figures."""
        return False

    def export(self, model: nn.Module, out: str, figures: Mapping[str, float]) -> None:
        """The weights say it all."""
