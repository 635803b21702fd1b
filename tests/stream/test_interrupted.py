"""A cancelled task leaves no lock behind that another thread would wait for."""

from __future__ import annotations

import _thread
import logging
import sys
import threading
import time
from typing import Any

import pytest

from services.stream.interrupted import give_back_locks

pytestmark = pytest.mark.timeout(60)

KNOWN: Any = logging


def free_to_others(lock: Any) -> bool:
    got: list[bool] = []

    def take() -> None:
        got.append(lock.acquire(timeout=0.1))
        if got[0]:
            lock.release()

    other = threading.Thread(target=take)
    other.start()
    other.join()
    return got[0]


def test_locks_of_logging_are_given_back_however_often_they_were_taken() -> None:
    handler = logging.StreamHandler()
    assert handler.lock is not None
    for lock in (KNOWN._lock, handler.lock):
        for _ in range(3):
            lock.acquire()
        assert not free_to_others(lock)
    give_back_locks()
    assert free_to_others(KNOWN._lock)
    assert free_to_others(handler.lock)


def test_a_lock_that_another_thread_has_stays_its_own() -> None:
    taken, done = threading.Event(), threading.Event()

    def log() -> None:
        with KNOWN._lock:
            taken.set()
            done.wait(30)

    other = threading.Thread(target=log)
    other.start()
    assert taken.wait(30)
    give_back_locks()
    assert not free_to_others(KNOWN._lock)
    done.set()
    other.join()


def test_interrupts_while_loggers_are_set_up_leave_locks_that_are_given_back() -> None:
    """What Ray does to a task that it cancels at its start."""
    logger, handler = logging.getLogger("interrupted"), logging.NullHandler()
    end, left = time.monotonic() + 20, 0

    def set_up(timer: threading.Timer) -> None:
        timer.start()
        while True:
            logger.setLevel(logging.DEBUG)
            logger.addHandler(handler)
            logger.removeHandler(handler)

    while not left and time.monotonic() < end:
        timer = threading.Timer(0.002, _thread.interrupt_main)
        with pytest.raises(KeyboardInterrupt):
            set_up(timer)
        left = KNOWN._lock._is_owned()
        give_back_locks()
        assert free_to_others(KNOWN._lock)
        timer.join()
    assert left or sys.version_info >= (3, 13)  # from then on `with` takes these locks
