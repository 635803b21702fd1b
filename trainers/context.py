"""A worker's place in a run: which of how many it is, where it computes, whom it tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from services.stream.pool import Pool, Sharing


def _never() -> bool:
    return False


def _tell_nobody(metrics: Mapping[str, float]) -> None:
    """A run without Ray has no one to report to: its files and its log say it all."""


@dataclass(frozen=True)
class Place:
    """One worker among those of a run.

    rank, world: this worker and how many there are; world > 1 means that torch.distributed is
    initialised. should_stop: a signal asked for an end: save a checkpoint and return.
    node_leaves: a node of the run is about to go: save a checkpoint at every reading.
    pool: augmentation actors of this worker's stream; None: threads of this process do it.
    sharing: whether other jobs take part in this worker's stream.
    trainer_cpus: logical CPUs that all workers of the run together hold.
    report: tells figures to Ray Train; every rank calls it equally often.
    """

    rank: int
    world: int
    device: torch.device
    should_stop: Callable[[], bool] = _never
    node_leaves: Callable[[], bool] = _never
    pool: Pool | None = None
    sharing: Sharing | None = None
    trainer_cpus: float = 0.0
    report: Callable[[Mapping[str, float]], None] = _tell_nobody
