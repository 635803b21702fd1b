"""What reading costs, counted by the thread that pays: for accounts of single tasks.

Stores and caches keep totals of their own, but several tasks share them; a thread works on one
task at a time, so the difference of two snapshots is that task's alone.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """Cumulative counts of one thread.

    bytes_fetched: read from storage. bytes_hit: of shards that the node had already.
    retries: requests made again. refetches: whole shards read again after a bad checksum.
    """

    bytes_fetched: int = 0
    bytes_hit: int = 0
    retries: int = 0
    refetches: int = 0

    def __add__(self, other: Reading) -> Reading:
        return Reading(
            self.bytes_fetched + other.bytes_fetched,
            self.bytes_hit + other.bytes_hit,
            self.retries + other.retries,
            self.refetches + other.refetches,
        )

    def __sub__(self, other: Reading) -> Reading:
        return Reading(
            self.bytes_fetched - other.bytes_fetched,
            self.bytes_hit - other.bytes_hit,
            self.retries - other.retries,
            self.refetches - other.refetches,
        )


class _Mine(threading.local):
    reading = Reading()


_mine = _Mine()


def note(
    *, bytes_fetched: int = 0, bytes_hit: int = 0, retries: int = 0, refetches: int = 0
) -> None:
    """Add to the counts of this thread."""
    _mine.reading += Reading(bytes_fetched, bytes_hit, retries, refetches)


def reading() -> Reading:
    """The counts of this thread so far."""
    return _mine.reading
