"""Warnings that any client can cause: told, but not as often as it likes."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

SECONDS = 60.0
"""Least time between two warnings of the same words."""


class Seldom(logging.Filter):
    """Lets a warning pass once in `SECONDS`, with the number of those left out since the last one.

    uvicorn warns of each request that is no HTTP, and of each that finds no place: a scanner of
    ports would fill the log. Errors pass, all of them.

    clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock, self._guard = clock, threading.Lock()
        self._told: dict[str, tuple[float, int]] = {}  # by words: when, and left out since

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it passes; what is said of the others is added to it."""
        if record.levelno != logging.WARNING:
            return True
        words, now = str(record.msg), self._clock()  # before its values are put in: they are few
        with self._guard:
            when, left_out = self._told.get(words, (-math.inf, 0))
            passes = now - when >= SECONDS
            self._told[words] = (now, 0) if passes else (when, left_out + 1)
        if passes and left_out:
            record.msg = f"{words} (and {left_out} more since this was last said)"
        return passes
