"""Work in threads, with its results in order and little of it under way at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_order(jobs: Iterable[Callable[[], T]], workers: int) -> Iterator[T]:
    """Results in the jobs' order; no more than `workers` are begun and not yet yielded.

    The first error is raised in its turn, after those that are under way have ended.
    """
    # Threads: reading, hashing, un-zipping and most of numpy leave the interpreter's lock alone.
    with ThreadPoolExecutor(workers, thread_name_prefix="shards") as pool:
        running: deque[Future[T]] = deque()
        for job in jobs:
            if len(running) >= workers:
                yield running.popleft().result()
            running.append(pool.submit(job))
        while running:
            yield running.popleft().result()
