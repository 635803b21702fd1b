"""Shards fetched side by side, and before they are due: a window's begin would else be a stall.

A shuffle window mixes many shards, so its first step needs all of them at once. Fetched one after
the other they would cost as many round trips to storage as there are shards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from services.errors import SeitError
from services.shards import tally
from services.shards.tally import Reading

FETCHES = 4
"""Shards that one process fetches at a time; each takes some 50 MB meanwhile."""

Place = tuple[int, int]
"""(source, shard)"""


class Ahead:
    """Fetches shards into the node's cache in threads of its own.

    fetch: fetches one, or finds it there. What the fetches cost is kept for `cost`. Errors stay
    where they are: whoever needs the shard meets them again, and says them.
    """

    def __init__(self, fetch: Callable[[Place], object]) -> None:
        self._fetch = fetch
        self._pool = ThreadPoolExecutor(FETCHES, thread_name_prefix="seit-ahead")
        self._guard = threading.Lock()
        self._running: dict[Place, Future[None]] = {}
        self._cost = Reading()

    def begin(self, places: Iterable[Place]) -> list[Future[None]]:
        """Start fetching what is not under way; returns without waiting."""
        with self._guard:
            for place in places:
                if place not in self._running:
                    self._running[place] = self._pool.submit(self._one, place)
            return [self._running[place] for place in places if place in self._running]

    def wait(self, places: list[Place]) -> None:
        """Fetch them, side by side, and return when all stand in the cache or have failed."""
        for future in self.begin(places):
            future.result()

    def cost(self) -> Reading:
        """What was read since the last call."""
        with self._guard:
            cost, self._cost = self._cost, Reading()
            return cost

    def _one(self, place: Place) -> None:
        before = tally.reading()
        try:
            self._fetch(place)
        except SeitError:
            return
        finally:
            with self._guard:
                self._cost += tally.reading() - before
                del self._running[place]
