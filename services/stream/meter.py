"""What flows through one rank's stream: rows, bytes, and waiting by its cause.

Cumulative since the stream was opened, thread-safe.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime

from services.stream.account import Account
from services.wire.seit import v1 as wire

COUNTERS = {
    "rows": "Rows delivered, those that do not exist left out",
    "bytes_fetched": "Bytes of shards read from storage",
    "bytes_cached": "Bytes of shards that the node had already",
    "stall_storage_seconds": "Seconds that the consumer waited for rows",
    "stall_augmentation_seconds": "Seconds that the consumer waited for the recipe",
    "consumer_seconds": "Seconds that the stream waited for the consumer",
    "retries": "Requests to storage that were made again",
    "refetches": "Shards read again after a bad checksum",
    "actor_restarts": "Augmentation actors that came back after a failure",
}
"""Fields of a flow that only grow: counters `seit_stream_NAME` of Ray and of the stats service."""

GAUGES = {
    "rows_per_second": "Rows a second since the first batch, start-up left out",
    "step": "Next step due",
    "step_target": "Last step",
}
"""Fields that stand for now, as gauges `seit_stream_NAME`, likewise."""


class Meter:
    """Counts what a consumer receives, and whom it waited for.

    The wait for the first batch is start-up; from then on a wait is a stall, but for the one in
    which others begin to make the batches (`taken_over`). It is charged to storage and to
    augmentation in proportion to the time that each took for the batch, with fetchers and
    augmenters working side by side; where the consumer augments itself, it waits for all of that,
    and only for what is left to storage. `consumer_seconds` is the opposite: how long the stream
    was left alone with a batch while the consumer worked. Rates leave start-up out.

    step: the first one due. fetchers, augmenters: how many of each work at a time; 0 augmenters
    where the consumer's own thread does that work.
    """

    def __init__(
        self,
        stream: str,
        rank: int,
        world: int,
        step_target: int,
        *,
        step: int = 0,
        fetchers: int = 1,
        augmenters: int = 1,
    ) -> None:
        self._lock = threading.Lock()
        self._flow = wire.Flow(stream=stream, rank=rank, workers=world, step_target=step_target)
        self._flow.step = step
        self._flow.state = "running" if step < step_target else "finished"
        self._fetchers, self._augmenters = fetchers, augmenters
        self._began = time.monotonic()
        self._first: float | None = None
        self._starts, self._starting_seconds = -1, 0.0
        self._handed: float | None = None
        self._rows_after_first = 0
        self._came_back: set[str] = set()

    def taken_over(self, step: int) -> None:
        """Others make the batches from `step` on: the wait for the first of theirs is start-up."""
        with self._lock:
            self._starts = step

    def delivered(
        self, step: int, rows: int, waited_seconds: float, account: Account | None = None
    ) -> None:
        """Account for the batch of `step`, `rows` real rows for which the consumer waited."""
        account = account or Account()
        with self._lock:
            flow, now = self._flow, time.monotonic()
            if self._first is None:
                self._first = now
            else:
                self._rows_after_first += rows
                stalled = waited_seconds
                if step == self._starts:
                    stalled = 0.0
                    self._starting_seconds += waited_seconds
                share = self._storage_share(stalled, account)
                flow.stall_seconds += stalled
                flow.stall_storage_seconds += stalled * share
                flow.stall_augmentation_seconds += stalled * (1 - share)
            if self._handed is not None:
                flow.consumer_seconds += max(0.0, now - waited_seconds - self._handed)
            self._handed = now
            flow.rows += rows
            flow.steps += 1
            flow.step = step + 1
            flow.bytes_fetched += account.bytes_fetched
            flow.bytes_cached += account.bytes_hit
            flow.retries += account.retries
            flow.refetches += account.refetches
            flow.quarantined += [name for name in account.lost if name not in flow.quarantined]
            if account.restarted:
                self._came_back.add(account.restarted)
                flow.actor_restarts = len(self._came_back)

    def _storage_share(self, stalled: float, account: Account) -> float:
        """Share of a stall that is charged to storage; the rest is augmentation's."""
        if not self._augmenters:
            return max(0.0, 1 - account.augment_seconds / stalled) if stalled else 1.0
        fetching = account.storage_seconds / self._fetchers
        spent = fetching + account.augment_seconds / self._augmenters
        return fetching / spent if spent else 1.0

    def shared(self, how: str) -> None:
        """Note whether the batches are those of a shared stream: "shared", or why no longer."""
        with self._lock:
            self._flow.shared = how

    def ended(self, state: str) -> None:
        """Close the account: "finished", "stopped" or "failed"."""
        with self._lock:
            self._flow.state = state

    @property
    def rows_per_second(self) -> float:
        """Rows a second since the first batch stood ready, start-up not counted; 0 before."""
        with self._lock:
            return self._rate(time.monotonic())

    def _rate(self, now: float) -> float:
        if self._first is None:
            return 0.0
        return self._rows_after_first / max(now - self._first - self._starting_seconds, 1e-9)

    @property
    def first_batch_seconds(self) -> float:
        """Seconds from opening the stream to its first batch; 0 before that."""
        with self._lock:
            return 0.0 if self._first is None else self._first - self._began

    def snapshot(self) -> wire.Flow:
        """The account so far, as it travels."""
        with self._lock:
            flow = wire.Flow.parse(bytes(self._flow))
            now = time.monotonic()
            flow.seconds = now - self._began
            flow.rows_per_second = self._rate(now)
            if self._first is not None:
                flow.first_batch_seconds = self._first - self._began
            flow.updated = datetime.now(UTC).isoformat(timespec="milliseconds")
            return flow
