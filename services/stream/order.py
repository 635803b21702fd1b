"""Batches in the order of their steps, whoever makes them. Knows neither Ray nor torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain, islice
from typing import TypeVar

THREADS = 4
"""Threads that prepare shares without a cluster; more than cores, as some wait for disks."""

ItemT = TypeVar("ItemT")
MadeT = TypeVar("MadeT")


def in_order(
    prepare: Callable[[ItemT], MadeT],
    items: Iterable[ItemT],
    ahead: int,
    end: Callable[[], None] = lambda: None,
    begin: Callable[[], None] = lambda: None,
) -> Generator[MadeT, None, None]:
    """`prepare(item)` for each item, up to `ahead` of them at work, given out in order.

    end: called once nothing more is wanted, before those at work are waited for.
    begin: called by each thread before its first item.
    """
    waiting: deque[Future[MadeT]] = deque()
    pool = ThreadPoolExecutor(min(ahead, THREADS), "seit-stream", begin)
    try:
        upcoming = iter(items)
        waiting.extend(pool.submit(prepare, item) for item in islice(upcoming, ahead))
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(pool.submit(prepare, item) for item in islice(upcoming, 1))
            yield made
    finally:
        end()
        pool.shutdown(wait=True, cancel_futures=True)


def merged(
    steps: Sequence[int],
    others: Sequence[int],
    one: Generator[MadeT, None, None],
    other: Generator[MadeT, None, None],
    end: Callable[[], None],
) -> Generator[MadeT, None, None]:
    """What is made of all `steps`, in order: of `others` by `other`, of the rest by `one`.

    `other` starts at once, not when its first step is due: both work all the while.
    end: called where nothing more is wanted before that first one was taken; `other`, which a
    thread may wait for, has to give up then.
    """
    theirs = chain(others, [steps[-1] + 1])
    due = next(theirs)
    with closing(one), closing(other), ThreadPoolExecutor(1) as starter:
        first: Future[MadeT] | None = starter.submit(next, other)
        try:
            for step in steps:
                if step < due:
                    yield next(one)
                    continue
                due = next(theirs)
                if first is None:
                    yield next(other)
                else:
                    ready = first.result()
                    first = None
                    yield ready
        finally:
            if first is not None:
                end()
