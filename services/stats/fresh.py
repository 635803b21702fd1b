"""A view of something outside that is looked at again before it is old, beside its readers."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from services.errors import SeitError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_EARLY = 0.4
"""Share of the time that a view serves after which it is looked at again, without anyone waiting:
a busy service never waits, though a look take longer than the view was young; an idle one waits
once."""


_LATE = 0.95
"""Share of the time after which a view counts as old for those who must not wait."""


class Fresh(Generic[T]):
    """What `look` found, never older than `seconds`; where a look takes longer, no older than its
    reader's question. Safe to share by threads.

    look: asked by one thread at a time; given whether a reader waits for it. What it raises, all
    readers hear who wait for it; beside the readers it is logged, and the view serves until it is
    old.
    clock: seconds, monotonic.
    """

    def __init__(
        self, look: Callable[[bool], T], seconds: float, clock: Callable[[], float]
    ) -> None:
        self._look, self._seconds, self._clock = look, seconds, clock
        self._looking = threading.Lock()  # one reader looks, the others wait for what it finds
        self._lock = threading.Lock()  # for the fields below, never held while looking
        self._early: threading.Thread | None = None
        self._at = -math.inf
        self._begun = 0  # looks
        self._number = 0  # of the look that found the view
        self._stamp = 0
        self._found: T | None = None
        self._failures = 0
        self._failure: Exception | None = None  # of the look before, if it failed

    def get(self) -> T:
        """The view; waits only where there is none that is young enough."""
        with self._lock:
            come, failures = self._begun, self._failures
        found, _ = self._now(self._seconds)
        if found is not None:
            return found
        with self._looking:
            found, _ = self._now(self._seconds)
            if found is None and self._number > come:
                # It was looked for since this reader came: more it cannot ask for, and if each of
                # those that wait looked again, the last would wait for the looks of all.
                found = self._found
            if found is None and self._failure is not None and self._failures > failures:
                raise self._failure  # while this reader waited: another look would wait as long
            return self._again(waited=True) if found is None else found

    def at_hand(self) -> T | None:
        """The view; None where `get` would wait, now or very soon. Never waits itself."""
        return self._now(self._seconds * _LATE)[0]

    def stamp(self) -> int | None:
        """A number that changes with the view; None as in `at_hand`."""
        found, stamp = self._now(self._seconds * _LATE)
        return None if found is None else stamp

    def _now(self, most: float) -> tuple[T | None, int]:
        """(the view if it is younger than `most`; its stamp)."""
        with self._lock:
            age = self._clock() - self._at
            if age >= most:
                return None, self._stamp
            if age >= self._seconds * _EARLY and self._early is None:
                self._early = threading.Thread(target=self._ahead, name="seit-fresh", daemon=True)
                self._early.start()
            return self._found, self._stamp

    def _ahead(self) -> None:
        try:
            with self._looking:
                self._again(waited=False)
        except (SeitError, OSError) as error:
            logger.warning("an older view serves on: %s", error)
        finally:
            with self._lock:
                self._early = None

    def _again(self, waited: bool) -> T:
        began = self._clock()  # what changes while one looks may be missing from the view
        with self._lock:
            self._begun += 1
        try:
            found = self._look(waited)
        except Exception as error:
            with self._lock:
                self._failures, self._failure = self._failures + 1, error
            raise
        changed = self._found is None or found != self._found
        with self._lock:
            self._stamp += changed
            self._found, self._at, self._number = found, began, self._begun
            self._failure = None
        return found
