"""A program that is told to go, by SIGTERM or Ctrl-C: once to end well, twice to end at once."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_OF_SIGNALS = 128  # exit codes above it tell of a signal, as in shells
_LATE_SECONDS = 5.0  # that the threads of a program have to end, once it is done
_SHOW_CURSOR = b"\x1b[?25h"


class Stop:
    """Whether a signal asked for an end, and which one."""

    def __init__(self, doing: str) -> None:
        self._doing, self._asked, self._number = doing, threading.Event(), signal.SIGINT

    def is_set(self) -> bool:
        """Whether one came."""
        return self._asked.is_set()

    def wait(self, seconds: float) -> bool:
        """`is_set`, once one came or the time is over."""
        return self._asked.wait(seconds)

    @property
    def number(self) -> signal.Signals:
        """The signal that came; SIGINT as long as none did."""
        return self._number

    @property
    def code(self) -> int:
        """Exit code of a program that obeyed: 143 after SIGTERM, 130 after Ctrl-C."""
        return _OF_SIGNALS + self._number

    def arm(self) -> None:
        """Obey signals; once more after a library put handlers of its own in the place of ours."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL if self.is_set() else self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        logger.warning(
            "%s: %s and ending; once more ends at once", signal.Signals(number).name, self._doing
        )
        self._number = signal.Signals(number)
        self._asked.set()
        self.arm()  # the next is obeyed by the system: a write that hangs would delay an exception
        if sys.stderr.isatty():  # a progress bar hid it, and would not live to show it again
            os.write(sys.stderr.fileno(), _SHOW_CURSOR)


@contextmanager
def stopping(doing: str) -> Iterator[Stop]:
    """What SIGTERM and Ctrl-C set; a second one ends the process at once.

    doing: what the program says that it does first, after the first one.
    Handlers that stood before come back at the end. Outside the main thread nothing is changed.
    """
    stop = Stop(doing)
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    stop.arm()
    try:
        yield stop
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def leave(code: int) -> NoReturn:
    """End the process with this exit code. After a signal that is within seconds, also where a
    thread waits for a storage that does not answer, which Python would wait for in turn.
    """
    if told_to_go(code):
        late = threading.Timer(_LATE_SECONDS, os._exit, (code,))
        late.daemon = True
        late.start()
        atexit.register(late.cancel)  # called once all threads ended: what is left is not hurried
    raise SystemExit(code)


def told_to_go(code: int) -> bool:
    """Whether an exit code is that of a program which a signal ended early."""
    return code > _OF_SIGNALS
