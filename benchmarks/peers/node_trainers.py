"""Driver of a cluster on which each node has one trainer that takes its share of the job's epochs.

`python -m peers.node_trainers ADDRESS JOB.json NODES RESULT.json`
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import ray
import ray.data

from peers import seit
from peers.job import Job
from services.stream.loader import Stream
from services.stream.pool import Pool

TRAINER_CPUS = 0.5


class Trainer:
    """One rank: receives its share of each step and keeps the numbers of the rows."""

    def __init__(self, job: Job, rank: int, world: int) -> None:
        ray.data.DataContext.get_current().enable_progress_bars = False
        self._stream = Stream(
            seit.request(job),
            stop=job.epochs * -(-job.rows // job.batch),
            rank=rank,
            world=world,
            pool=Pool(actors=1, cpus=0.25),
            trainer_cpus=world * TRAINER_CPUS,
        )

    def run(self) -> list[int]:
        rows: list[int] = []
        for batch in self._stream:
            rows += batch.rows[batch.rows >= 0].tolist()
        return rows


def main() -> None:
    address, order, count, result = sys.argv[1:]
    job, world = Job.load(Path(order)), int(count)
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
    began = time.perf_counter()
    rows = [row for part in ray.get([trainer.run.remote() for trainer in trainers]) for row in part]
    told = {"seconds": time.perf_counter() - began, "rows": rows}
    Path(result).write_text(json.dumps(told))


if __name__ == "__main__":
    main()
