"""What flows through one rank's stream: rows, and waiting for them. Cumulative, thread-safe."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime

from services.wire.seit import v1 as wire


class Meter:
    """Counts what a consumer receives and how long it waited for it.

    The wait for the first batch is start-up; from then on a wait is a stall.
    """

    def __init__(self, stream: str, rank: int, world: int, step_target: int) -> None:
        self._lock = threading.Lock()
        self._flow = wire.Flow(stream=stream, rank=rank, workers=world, step_target=step_target)
        self._flow.state = "running"
        self._began = time.monotonic()
        self._first: float | None = None
        self._rows_after_first = 0

    def delivered(self, rows: int, waited_seconds: float) -> None:
        """Account for one batch of `rows` real rows for which the consumer waited."""
        with self._lock:
            if self._first is None:
                self._first = time.monotonic()
            else:
                self._rows_after_first += rows
                self._flow.stall_seconds += waited_seconds
            self._flow.rows += rows
            self._flow.steps += 1

    def ended(self, state: str) -> None:
        """Close the account: "finished" or "failed"."""
        with self._lock:
            self._flow.state = state

    @property
    def rows_per_second(self) -> float:
        """Rows a second since the first batch stood ready, so start-up does not count; 0 before."""
        with self._lock:
            if self._first is None:
                return 0.0
            return self._rows_after_first / max(time.monotonic() - self._first, 1e-9)

    @property
    def first_batch_seconds(self) -> float:
        """Seconds from opening the stream to its first batch; 0 before that."""
        with self._lock:
            return 0.0 if self._first is None else self._first - self._began

    def snapshot(self) -> wire.Flow:
        """The account so far, as it travels."""
        with self._lock:
            flow = wire.Flow.parse(bytes(self._flow))
            flow.seconds = time.monotonic() - self._began
            flow.updated = datetime.now(UTC).isoformat(timespec="milliseconds")
            return flow
