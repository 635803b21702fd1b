"""Shards fetched side by side, and before they are due: a window's begin would else be a stall.

A shuffle window mixes many shards, so its first step needs all of them at once. Fetched one after
the other they would cost as many round trips to storage as there are shards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

from services.errors import SeitError, StoreError
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

    Several readers share it; each is named by its own event `ended`, those who never end by None.
    What one of them gives up is still fetched where another one wants it.
    """

    def __init__(self, fetch: Callable[[Place], object]) -> None:
        self._fetch = fetch
        self._pool = ThreadPoolExecutor(FETCHES, thread_name_prefix="seit-ahead")
        self._guard = threading.Lock()
        self._running: dict[Place, Future[StoreError | None]] = {}
        self._wanted: dict[Place, set[threading.Event | None]] = {}  # by whom, of those running
        self._cost = Reading()

    def begin(
        self, places: Iterable[Place], ended: threading.Event | None = None
    ) -> list[Future[StoreError | None]]:
        """Start fetching what is not under way; returns without waiting."""
        with self._guard:
            begun = []
            for place in places:
                if place not in self._running:
                    self._running[place] = self._pool.submit(self._one, place)
                self._wanted.setdefault(place, set()).add(ended)
                begun.append(self._running[place])
            return begun

    def wait(self, places: list[Place], ended: threading.Event | None = None) -> None:
        """Fetch them, side by side, and return when all stand in the cache or have failed.

        A storage that does not answer is waited for once, not once for each shard: the others are
        given up, and it is left to whoever needs them to say so.
        ended: set when nobody wants them any more; then CancelledError, once `cancel` is called.
        """
        for future in self.begin(places, ended):
            try:
                failed = future.result() is not None
            except CancelledError:
                failed = True
            if ended is not None and ended.is_set():
                raise CancelledError
            if failed:
                self.cancel(ended, places)
                return

    def cancel(
        self, ended: threading.Event | None = None, places: Iterable[Place] | None = None
    ) -> None:
        """Want these no more, all by default; what nobody else wants is not begun."""
        with self._guard:
            for place in list(self._running) if places is None else places:
                wanted = self._wanted.get(place, set())
                wanted.discard(ended)
                if place in self._running and not wanted and self._running[place].cancel():
                    self._forget(place)

    def cost(self) -> Reading:
        """What was read since the last call."""
        with self._guard:
            cost, self._cost = self._cost, Reading()
            return cost

    def _one(self, place: Place) -> StoreError | None:
        before = tally.reading()
        try:
            self._fetch(place)
        except SeitError as error:
            return error if isinstance(error, StoreError) else None
        finally:
            with self._guard:
                self._cost += tally.reading() - before
                self._forget(place)
        return None

    def _forget(self, place: Place) -> None:
        del self._running[place], self._wanted[place]
