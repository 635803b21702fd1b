"""What is left in a worker process where Ray has cancelled a task.

Ray interrupts the task's thread wherever it is; the process then takes the next task. Python's
logging takes a lock and begins the block that gives it back with its next instruction: an interrupt
between the two leaves the lock taken for good. Ray Data sets its loggers up anew at the start of
each task, so a task that is cancelled at its start is often hit there. In the next one all goes
well, until another thread of the process has something to log: it would wait for ever.
"""

from __future__ import annotations

import logging
from typing import Any


def give_back_locks() -> None:
    """Give back the locks of logging that this thread has, though it is not logging anything."""
    known: Any = logging
    handlers = [handler for reference in known._handlerList if (handler := reference())]
    for lock in [known._lock, *(handler.lock for handler in handlers if handler.lock)]:
        while lock._is_owned():
            lock.release()
