"""The meter's figures as Ray metrics, which the cluster's Prometheus scrapes on every node."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ray.util.metrics import Counter, Gauge

from services.stream.batch import StreamBatch
from services.stream.meter import COUNTERS, GAUGES, Meter
from services.wire.seit import v1 as wire

TAGS = ("stream", "rank")

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
