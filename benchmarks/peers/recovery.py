"""Driver of a cluster whose parts die while a trainer on its first node reads an augmented stream.

`python -m peers.recovery ADDRESS JOB.json NODES RESULT.json`. JOB.json is in the cluster's folder.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ray
import ray.data

from peers import nodes, seit
from peers.job import Job
from services.stream.batch import StreamBatch
from services.stream.loader import Stream
from services.stream.pool import Pool

ACTOR = "MapWorker(MapBatches(AugmentActor))"
_WATCHED_SECONDS = 45.0


def stream(job: Job) -> Stream:
    """Work enough that actors on both nodes have some to do; each fills most of its own."""
    pool = Pool(actors=2, cpus=1.0, head_start=0)
    return Stream(seit.pretraining(job), stop=1_000_000, pool=pool)


def kill_actors(scratch: Path) -> None:
    """Every augmentation actor at once."""
    found = [p for p in nodes.processes_of(scratch) if ACTOR in " ".join(p.cmdline())]
    if not found:
        raise RuntimeError("no augmentation actor is at work")
    for process in found:
        process.kill()


def longest_wait(batches: Iterator[StreamBatch], act: Callable[[], None]) -> dict[str, float]:
    """Seconds between batches after `act`, for as long as its effects are looked for."""
    waits = []
    for _ in range(20):
        began = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - began)
    act()
    until = time.perf_counter() + _WATCHED_SECONDS
    longest = 0.0
    while time.perf_counter() < until:
        began = time.perf_counter()
        next(batches)
        longest = max(longest, time.perf_counter() - began)
    return {"usual": statistics.median(waits), "longest": longest}


def main() -> None:
    address, order, _, result = sys.argv[1:]
    job, scratch = Job.load(Path(order)), Path(order).parent
    ray.init(
        address=address,
        _node_ip_address=address.partition(":")[0],
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    batches = iter(stream(job))
    told = {
        "actor": longest_wait(batches, lambda: kill_actors(scratch)),
        "node": longest_wait(batches, lambda: nodes.kill_node(scratch, 1)),
    }
    Path(result).write_text(json.dumps(told))


if __name__ == "__main__":
    main()
