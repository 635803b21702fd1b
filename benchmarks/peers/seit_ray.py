"""This project's stream through Ray Data: fetch tasks and one augmentation actor."""

from __future__ import annotations

from typing import Any

from peers import seit
from peers.cluster import start
from peers.job import Job
from services.stream.pool import Pool

write = seit.write


def prepare(job: Job) -> None:
    start(job.cpus)


class Loader(seit.Loader):
    """The same stream, with a pool on the cluster."""

    def __init__(self, job: Job, state: Any) -> None:
        super().__init__(job, state, Pool(actors=1, cpus=1.0))
