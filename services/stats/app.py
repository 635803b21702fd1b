"""The HTTP service over a root of datasets and folders of runs: `/v1`, read-only.

Datasets are answered from manifests alone, streams from what runs say of them, samples from a
shard. On its way a request passes the measuring, the guard, the answers at hand, the compression.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from services.settings import Settings, load_settings
from services.shards.cache import ShardCache
from services.shards.store import Store
from services.stats import problems, routes_datasets, routes_flows, routes_samples, site
from services.stats.access import Access
from services.stats.answers import API_VERSION, PROBLEMS
from services.stats.apart import work_on
from services.stats.catalog import Catalog
from services.stats.cluster import RayCluster
from services.stats.compressed import Compressed
from services.stats.decoding import Decoder
from services.stats.guard import Guard, Rates
from services.stats.kept import Kept
from services.stats.metrics import Measured, Metrics
from services.stats.parameters import CATALOG, CLUSTER, FOLDERS, STREAMS, Exact, FromParts, Parts
from services.stats.samples import Rows
from services.stats.streams import Streams, open_runs

_GZIP_FROM_BYTES = 1024
_THREADS = 8  # that make answers: more would only keep each other from Python's lock
_PICTURE_THREADS = 2  # one makes a picture, for seconds; one looks for the next one's rows
_SWITCH_SECONDS = 0.0005  # after which a thread at work lets the one go on that sends answers

operation = APIRouter(tags=["operation"], route_class=Exact)


def create_app(
    root: Store, settings: Settings | None = None, runs: Sequence[Store] | None = None
) -> FastAPI:
    """The service over the datasets below `root` and the streams of the runs in `runs`.

    settings: freshness, limits and access, by default from the environment.
    runs: folders of runs; None for those that the settings name.

    Raises: InvalidInputError, NotFoundError or FormatError for settings that cannot be.
    """
    settings = settings or load_settings()
    parts = _parts(root, settings, runs)
    metrics = Metrics(parts.catalog, parts.streams, parts.cluster)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = _THREADS
        sys.setswitchinterval(_SWITCH_SECONDS)
        # Beside the first requests: a service that warms up for a minute is not one that is down.
        threading.Thread(target=parts.catalog.warm, name="seit-warm", daemon=True).start()
        yield
        parts.catalog.close()

    app = FastAPI(
        title="SeiT++ data service",
        version=API_VERSION,
        description="Datasets of token shards: what stands on storage, how much it takes, what is"
        " wrong with it, and what flows into the runs that train on them. Answers are JSON, or"
        " protobuf (proto/seit/v1/stats.proto) where Accept prefers application/x-protobuf. For"
        " Prometheus: /metrics.",
        docs_url=None,  # FastAPI's own pages load their scripts from the internet
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # /metrics has its own
        lifespan=lifespan,
    )
    app.state.parts, app.state.metrics = parts, metrics
    # The last one added is outermost.
    app.add_middleware(Compressed, minimum_size=_GZIP_FROM_BYTES)
    app.add_middleware(
        Kept,
        sources={
            CATALOG: lambda path: parts.catalog.stamp(_dataset_of(path)),
            FOLDERS: lambda path: parts.catalog.folder_stamp(_dataset_of(path)),
            STREAMS: lambda _: parts.streams.stamp(),
            CLUSTER: lambda _: parts.cluster.stamp(),
        },
        limit_bytes=settings.stats_answer_bytes,
    )
    app.add_middleware(
        Guard,
        access=Access(settings.stats_tokens),
        rates=Rates(settings.stats_rate),
        seconds=settings.stats_seconds,
    )
    app.add_middleware(Measured, metrics=metrics)
    for router in (routes_datasets.router, routes_samples.router, routes_flows.router):
        app.include_router(router, responses=PROBLEMS)
    app.include_router(operation)
    app.include_router(site.router)
    cache = str(settings.cache_dir)
    problems.install(app, {root.url: "ROOT", cache: "CACHE"})
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        return _with_problem_media(describe())

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend the document
    return app


def _parts(root: Store, settings: Settings, runs: Sequence[Store] | None) -> Parts:
    fresh = settings.stats_fresh_seconds
    return Parts(
        catalog=Catalog(work_on(root), fresh_seconds=fresh, shard_limit=settings.stats_shards),
        streams=Streams(
            open_runs(settings.stats_runs) if runs is None else runs,
            fresh_seconds=fresh,
            bytes_limit=settings.stats_stream_bytes,
        ),
        cluster=RayCluster(settings.stats_ray, token=settings.ray_token, fresh_seconds=fresh),
        rows=Rows(root, lambda: ShardCache(settings.cache_dir, settings.cache_bytes)),
        decoder=Decoder(root, settings.stats_tokenadapt),
        picturing=CapacityLimiter(_PICTURE_THREADS),
    )


def _dataset_of(path: str) -> str | None:
    """The dataset that a path is about; None for none, or all."""
    _, _, tail = path.partition("/v1/datasets/")
    return tail.partition("/")[0] or None


@operation.get("/healthz")
async def healthz() -> dict[str, str]:  # in a thread it would wait for those that storage holds
    """Whether the process answers. Says nothing of the storage."""
    return {"status": "ok"}


@operation.get("/readyz", responses={503: PROBLEMS[503]})
def readyz(parts: FromParts) -> dict[str, str]:
    """Whether datasets and runs can be listed: 503 while their storage does not answer."""
    parts.catalog.datasets()
    parts.streams.page(None, "", 1)
    return {"status": "ready", "cluster": parts.cluster.view().cluster.state}


@operation.get("/metrics", include_in_schema=False)
def metrics(request: Request) -> Response:
    """Streams, datasets and requests as Prometheus text."""
    known: Metrics = request.app.state.metrics
    return Response(known.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _with_problem_media(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI documents every answer as plain JSON; errors are problem documents."""
    for operations in document["paths"].values():
        for described in operations.values():
            for status, answer in described["responses"].items():
                content = answer.get("content", {})
                if int(status) >= 400 and "application/json" in content:
                    content[problems.PROBLEM_MEDIA] = content.pop("application/json")
    return document
