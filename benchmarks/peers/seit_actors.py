"""This project's stream behind augmentation actors on CPUs: pre-training without TokenAdapt."""

from __future__ import annotations

from typing import Any

from peers import seit
from peers.cluster import start
from peers.job import Job
from services.stream.pool import Pool, Sharing


def prepare(job: Job) -> None:
    start(job.cpus)


class Loader(seit.Loader):
    """As many actors as the job has workers, a core each."""

    def __init__(self, job: Job, state: Any) -> None:
        pool = Pool(actors=job.workers, cpus=1.0, head_start=job.head_start)
        sharing = Sharing(job.share_lag) if job.share_lag else None
        super().__init__(job, state, pool, seit.pretraining(job), sharing)
