"""The meter's figures as Ray metrics, which the cluster's Prometheus scrapes on every node."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ray.util.metrics import Counter, Gauge

from services.stream.batch import StreamBatch
from services.stream.meter import Meter
from services.wire.seit import v1 as wire

TAGS = ("stream", "rank")

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
"""Fields of a flow that only grow, as counters `seit_stream_NAME`."""

GAUGES = {
    "rows_per_second": "Rows a second since the first batch",
    "step": "Next step due",
    "step_target": "Last step",
}
"""Fields that stand for now, as gauges `seit_stream_NAME`."""

_EVERY_SECONDS = 2.0


class _Export:
    def __init__(self) -> None:
        self._counters = {
            name: Counter(f"seit_stream_{name}", text, TAGS) for name, text in COUNTERS.items()
        }
        self._gauges = {
            name: Gauge(f"seit_stream_{name}", text, TAGS) for name, text in GAUGES.items()
        }
        self._quarantined = Gauge("seit_stream_quarantined", "Damaged shards left out", TAGS)
        self._last = dict.fromkeys(COUNTERS, 0.0)

    def update(self, flow: wire.Flow) -> None:
        tags = {"stream": flow.stream, "rank": str(flow.rank)}
        for name, counter in self._counters.items():
            value = float(getattr(flow, name))
            if value > self._last[name]:
                counter.inc(value - self._last[name], tags)
                self._last[name] = value
        for name, gauge in self._gauges.items():
            gauge.set(float(getattr(flow, name)), tags)
        self._quarantined.set(len(flow.quarantined), tags)


def exported(batches: Iterator[StreamBatch], meter: Meter) -> Iterator[StreamBatch]:
    """The same batches; meanwhile the meter's figures reach Ray, every two seconds and at the end.

    Call it in a process that has joined a cluster.
    """
    export, told = _Export(), 0.0
    try:
        for batch in batches:
            now = time.monotonic()
            if now - told >= _EVERY_SECONDS:
                told = now
                export.update(meter.snapshot())
            yield batch
    finally:
        if close := getattr(batches, "close", None):
            close()
        export.update(meter.snapshot())
