"""Ending executions of Ray Data from another thread than the one that waits for their blocks.

A pool that finds no room on the cluster gives no block for as long as that stays so, and Ray has no
word that would end such a wait: the executor, asked in each round of its loop, ends by itself.

As in `forget.py` fields of Ray's own are used; the test of this module tells of a version of it
that has others.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray._private import auto_init_hook
from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data import DataContext
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

_KEY = "seit_ending"

_ended: set[str] = set()
"""Names: a context travels to tasks and is copied, which no lock or flag would survive."""

_AUTO_CONNECT = auto_init_hook.enable_auto_connect
_figures = logging.getLogger("ray.data._internal.stats")
_outliving, _outlive = threading.Lock(), 0


class Ending:
    """A way to end the executions of the datasets that were given to it."""

    def __init__(self) -> None:
        self._name = uuid.uuid4().hex

    def covers(self, context: DataContext) -> None:
        """Have the execution of the dataset with this context end by `end`."""
        context.set_config(_KEY, self._name)
        context.custom_execution_callback_classes = [
            *context.custom_execution_callback_classes,
            End,
        ]

    @property
    def ended(self) -> bool:
        """Whether `end` was called."""
        return self._name in _ended

    def end(self) -> None:
        """End them, those that begin later too: who waits for a block meets the end of all."""
        _ended.add(self._name)


@contextmanager
def outliving_ray() -> Iterator[None]:
    """Meanwhile this process may shut Ray down and then leave a stream, quietly and at once.

    Ray's threads tidy up after the execution then: they would start another cluster to do so (which
    a process that joined one has no use for), and warn of each figure that finds nobody. Where Ray
    still runs at the end, it starts by itself again as the process had it.
    """
    global _outlive
    with _outliving:
        _outlive += 1
        auto_init_hook.enable_auto_connect = False
        _figures.addFilter(_is_up)
    try:
        yield
    finally:
        with _outliving:
            _outlive -= 1
            if not _outlive and ray.is_initialized():
                auto_init_hook.enable_auto_connect = _AUTO_CONNECT
                _figures.removeFilter(_is_up)


def _is_up(record: logging.LogRecord) -> bool:
    return bool(ray.is_initialized())


class End(ExecutionCallback):
    """Called by the executor in its own loop, whether anything happens or not."""

    def __init__(self) -> None:
        self._done = False

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        if not self._done and executor._data_context.get_config(_KEY) in _ended:
            self._done = True
            output: Any = executor._output_node
            output[1].mark_finished()  # whoever waits for it then shuts the executor down
