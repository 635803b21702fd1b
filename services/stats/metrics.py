"""What the service knows, as Prometheus text: streams, datasets, and its own requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.errors import SeitError
from services.stats.catalog import Catalog
from services.stats.cluster import ABSENT, REACHABLE, RayCluster
from services.stats.flows import STATES
from services.stats.streams import Streams
from services.stream.meter import COUNTERS, GAUGES
from services.wire.seit import v1 as wire

logger = logging.getLogger(__name__)

ENDED_SECONDS = 3600.0
"""A stream that ended longer ago is not exported any more: a root keeps its runs for years."""

_LABELS = ("run", "stream", "rank")
_METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
_ALL = 2**31
_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """A registry of its own, so that two services in one process do not share figures."""

    def __init__(
        self,
        catalog: Catalog,
        streams: Streams,
        cluster: RayCluster,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Standing(catalog, streams, cluster, now))
        self._requests = Counter(
            "seit_service_requests",
            "Requests answered",
            ("method", "path", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "seit_service_request_seconds",
            "Seconds from a request to the end of its answer",
            ("path",),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._series: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}

    def text(self) -> bytes:
        """All figures, in Prometheus' text format."""
        return generate_latest(self._registry)

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count one request; `path` is the route's, so that names in it make no new series."""
        key = method if method in _METHODS else "other", path, str(status)
        if key not in self._series:  # to look them up costs more than to count
            self._series[key] = self._requests.labels(*key), self._seconds.labels(path)
        count, histogram = self._series[key]
        count.inc()
        histogram.observe(seconds)


class Measured:
    """ASGI middleware that tells `metrics` of every request."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500  # what an unexpected error becomes further out

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.answered(scope["method"], path, status, time.perf_counter() - began)


class _Standing(Collector):
    """Datasets and streams as they are when Prometheus asks."""

    def __init__(
        self, catalog: Catalog, streams: Streams, cluster: RayCluster, now: Callable[[], float]
    ) -> None:
        self._catalog, self._streams, self._cluster, self._now = catalog, streams, cluster, now

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is depends on the storage, which is not asked before a scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """A storage that does not answer leaves its series out and its `up` at 0."""
        up = GaugeMetricFamily("seit_service_up", "Whether the storage answers", labels=("part",))
        parts: dict[str, Callable[[], list[Metric]]] = {
            "datasets": lambda: _dataset_families(self._catalog),
            "streams": lambda: _stream_families(self._streams.all(), self._now()),
        }
        for part, families in parts.items():
            try:
                found = families()
            except SeitError as error:
                logger.error("/metrics without %s: %s", part, error)
                up.add_metric((part,), 0)
                continue
            up.add_metric((part,), 1)
            yield from found
        yield from _cluster_families(self._cluster.view().cluster, up)
        yield up


def _cluster_families(cluster: wire.Cluster, up: GaugeMetricFamily) -> Iterator[Metric]:
    """Nothing where no cluster was named."""
    if cluster.state == ABSENT:
        return
    up.add_metric(("cluster",), cluster.state == REACHABLE)
    if cluster.state == REACHABLE:
        nodes = GaugeMetricFamily("seit_cluster_nodes", "Nodes by state", labels=("state",))
        nodes.add_metric(("alive",), cluster.nodes_alive)
        nodes.add_metric(("dead",), cluster.nodes_dead)
        yield nodes
        yield GaugeMetricFamily("seit_cluster_actors", "Actors alive", value=cluster.actors_alive)


def _dataset_families(catalog: Catalog) -> list[Metric]:
    sizes = {
        "version": "Newest version",
        "rows": "Rows of the newest version",
        "shards": "Shards of the newest version",
        "bytes": "Bytes of its shards",
        "source_bytes": "Bytes of the pictures' original files, 0 where not known",
        "pixel_bytes": "Bytes of the pictures as raw pixels",
    }
    summaries = catalog.dataset_page("", _ALL).datasets
    families: list[Metric] = []
    for name, text in sizes.items():
        family = GaugeMetricFamily(f"seit_dataset_{name}", text, labels=("dataset",))
        for one in summaries:
            family.add_metric((one.name,), getattr(one, name))
        families.append(family)
    return families


def _stream_families(streams: list[wire.StreamInfo], now: float) -> list[Metric]:
    counts = GaugeMetricFamily("seit_streams", "Streams by state", labels=("state",))
    for state in STATES:
        counts.add_metric((state,), sum(one.state == state for one in streams))
    states = GaugeMetricFamily("seit_stream_state", "1 for its state", labels=("run", "state"))
    silent = GaugeMetricFamily(
        "seit_stream_silent_seconds", "Seconds since the last word, while it runs", labels=_LABELS
    )
    quarantined = GaugeMetricFamily(
        "seit_stream_quarantined", "Damaged shards that the run left out", labels=("run",)
    )
    counters = {
        name: CounterMetricFamily(f"seit_stream_{name}", text, labels=_LABELS)
        for name, text in COUNTERS.items()
    }
    gauges = {
        name: GaugeMetricFamily(f"seit_stream_{name}", text, labels=_LABELS)
        for name, text in GAUGES.items()
    }
    for one in streams:
        if not _is_recent(one, now):
            continue
        states.add_metric((one.name, one.state), 1)
        quarantined.add_metric((one.name,), one.quarantined)  # ranks may name the same shard
        for rank in one.ranks:
            flow = rank.flow
            assert flow is not None  # `summarize_words` gives every rank its flow
            labels = (one.name, flow.stream, str(flow.rank))
            silent.add_metric(labels, rank.silent_seconds)
            for name, family in (counters | gauges).items():
                family.add_metric(labels, getattr(flow, name))
    return [counts, states, silent, quarantined, *counters.values(), *gauges.values()]


def _is_recent(stream: wire.StreamInfo, now: float) -> bool:
    running = stream.state in ("running", "stalled")
    return running or now - datetime.fromisoformat(stream.updated).timestamp() <= ENDED_SECONDS
