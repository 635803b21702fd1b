"""Fetching side by side: what a storage that does not answer costs, what an end leaves undone."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import CancelledError

import pytest

from services.errors import IntegrityError, StoreError
from services.stream.ahead import FETCHES, Ahead, Place
from services.stream.order import in_order

pytestmark = pytest.mark.timeout(120)
PLACES: list[Place] = [(0, shard) for shard in range(60)]


class Storage:
    """Fetches that wait to be let go; the first one asked for fails at once, if it is to fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: Counter[Place] = Counter()
        self.begun, self.may_end = threading.Semaphore(0), threading.Event()
        self._error = error

    def fetch(self, place: Place) -> None:
        self.asked[place] += 1
        self.begun.release()
        if self._error is not None and place == PLACES[0]:
            raise self._error
        assert self.may_end.wait(60)


def test_a_dead_storage_is_waited_for_once_not_for_each_shard() -> None:
    storage = Storage(StoreError("gone"))
    Ahead(storage.fetch).wait(PLACES)  # returns, though all others still wait for an answer
    assert len(storage.asked) <= FETCHES + 1
    storage.may_end.set()


def test_a_damaged_shard_keeps_no_other_from_being_fetched() -> None:
    storage = Storage(IntegrityError("flipped"))
    storage.may_end.set()
    Ahead(storage.fetch).wait(PLACES)
    assert set(storage.asked) == set(PLACES)


def test_what_nobody_wants_any_more_is_not_begun() -> None:
    storage, ended, heard = Storage(), threading.Event(), threading.Event()
    ahead = Ahead(storage.fetch)

    def wait() -> None:
        with pytest.raises(CancelledError):
            ahead.wait(PLACES, ended)
        heard.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    for _ in range(FETCHES):
        assert storage.begun.acquire(timeout=60)
    ended.set()
    ahead.cancel(ended)
    storage.may_end.set()
    assert heard.wait(60)
    waiter.join()
    assert len(storage.asked) == FETCHES
    ahead.wait(PLACES)  # and later they may be asked for again
    assert set(storage.asked) == set(PLACES)


def test_another_reader_goes_on_when_one_ends() -> None:
    """Both want the same shards: none of them is given up, or fetched twice."""
    storage, ended = Storage(), threading.Event()
    ahead = Ahead(storage.fetch)
    ahead.begin(PLACES, ended)
    waiter = threading.Thread(target=ahead.wait, args=(PLACES, threading.Event()))
    waiter.start()
    for _ in range(FETCHES):
        assert storage.begun.acquire(timeout=60)
    own = [(1, shard) for shard in range(9)]
    ahead.begin(own, ended)
    ended.set()
    ahead.cancel(ended)
    storage.may_end.set()
    waiter.join(60)
    assert not waiter.is_alive()
    assert storage.asked == Counter(PLACES)


def test_the_end_comes_before_the_wait_for_those_at_work() -> None:
    """They may wait for a storage, and would else be waited for as long."""
    begun, ended = threading.Semaphore(0), threading.Event()

    def prepare(item: int) -> int:
        begun.release()
        assert item == 0 or ended.wait(60)
        return item

    made = in_order(prepare, range(9), 3, ended.set)
    assert next(made) == 0
    for _ in range(3):
        assert begun.acquire(timeout=60)
    made.close()
    assert ended.is_set()
