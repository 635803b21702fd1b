"""What Ray Data remembers of each block that it has given out, let go while the run goes on.

An execution keeps statistics of every block, and the place of every task in the order, until it
ends. That is nothing for the minutes that it is made for. Here one execution is a whole run: some
8 KB a step, a gigabyte in a pre-training of the paper.

Ray has no word for it, so its own fields are emptied. Where another version of it has other fields,
nothing is let go and nothing breaks: the test of this module tells of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

EVERY = 256
"""Rounds of the executor's loop between two times: each gives out a block or so."""


class Forget(ExecutionCallback):
    """Called by the executor in its own loop, the only one that touches what is let go here."""

    def __init__(self) -> None:
        self._rounds = 0

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        self._rounds += 1
        if self._rounds % EVERY:
            return
        for operator in getattr(executor, "_topology", None) or ():
            # For a report at the end that nobody asks for.
            getattr(operator, "_output_blocks_stats", []).clear()
            queue = getattr(operator, "_output_queue", None)
            if all(hasattr(queue, name) for name in ("_current_key", "_inner", "_finalized_keys")):
                _forget_given_out(queue)


def _forget_given_out(queue: Any) -> None:
    """Tasks whose blocks have all been taken: the queue never looks at them again."""
    now = queue._current_key
    for key in [key for key in queue._inner if key < now]:
        del queue._inner[key]
    queue._finalized_keys -= {key for key in queue._finalized_keys if key < now}
