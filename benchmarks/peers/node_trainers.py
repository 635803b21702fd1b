"""Driver of a cluster on which each node has one trainer that takes its share of the job's epochs.

`python -m peers.node_trainers ADDRESS JOB.json NODES RESULT.json`, with the S3 server of storage.py
in the environment. The result has for each epoch its seconds, and the bytes that the server sent by
its end, counted from the first trainer's start.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.data

from peers import seit
from peers.job import Job
from peers.storage import Server
from services.stream.loader import Stream
from services.stream.pool import Pool

TRAINER_CPUS = 0.5


class Trainer:
    """One rank: receives its share of each step and keeps the numbers of the rows."""

    def __init__(self, job: Job, rank: int, world: int) -> None:
        ray.data.DataContext.get_current().enable_progress_bars = False
        self._steps = -(-job.rows // job.batch)
        self._stream = Stream(
            seit.request(job),
            stop=job.epochs * self._steps,
            rank=rank,
            world=world,
            pool=Pool(actors=1, cpus=0.25),
            trainer_cpus=world * TRAINER_CPUS,
        )
        self._batches = iter(self._stream)

    def epoch(self) -> npt.NDArray[np.int64]:
        """(n,) rows of the next epoch's steps."""
        batches = itertools.islice(self._batches, self._steps)
        return np.concatenate([batch.rows[batch.rows >= 0] for batch in batches])


def main() -> None:
    address, order, count, result = sys.argv[1:]
    job, world = Job.load(Path(order)), int(count)
    server = Server(os.environ["AWS_ENDPOINT_URL"], {})
    ray.init(
        address=address,
        _node_ip_address=address.partition(":")[0],
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    remote: Any = ray.remote(num_cpus=TRAINER_CPUS)(Trainer)
    trainers = [
        remote.options(resources={f"node-{rank}": 0.1}).remote(job, rank, world)
        for rank in range(world)
    ]
    before, seconds, sent = server.sent_bytes(), [], []
    for _ in range(job.epochs):
        began = time.perf_counter()
        rows = np.concatenate(ray.get([trainer.epoch.remote() for trainer in trainers]))
        seconds.append(time.perf_counter() - began)
        sent.append(server.sent_bytes() - before)
        if not np.array_equal(np.sort(rows), np.arange(job.rows)):
            raise AssertionError(f"{world} trainers gave {len(rows)} rows of {job.rows}")
    Path(result).write_text(json.dumps({"seconds": seconds, "sent": sent}))


if __name__ == "__main__":
    main()
