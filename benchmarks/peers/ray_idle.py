"""Ray's own memory: a cluster, and a Ray Data pipeline of next to no rows."""

from __future__ import annotations

from typing import Any

import ray
import torch

from peers.child import Batches
from peers.cluster import start
from peers.job import Job


def prepare(job: Job) -> None:
    start(job.cpus)


def _same(batch: Any) -> Any:
    return batch


class Loader:
    def __init__(self, job: Job, state: Any) -> None:
        self._side = job.crop
        self._dataset = ray.data.range(16).map_batches(_same, batch_size=None)

    def epoch(self) -> Batches:
        for batch in self._dataset.iter_torch_batches(batch_size=16):
            labels = batch["id"]
            yield torch.zeros(len(labels), self._side, self._side, dtype=torch.int64), labels

    def state(self) -> Any:
        raise NotImplementedError("an idle cluster has no position")
