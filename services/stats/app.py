"""The HTTP service over a root of datasets and folders of runs: `/v1`, read-only.

Datasets are answered from manifests alone, streams from what runs say of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import xxhash
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from services.errors import InvalidInputError
from services.settings import Settings, load_settings
from services.shards.store import Store
from services.stats import problems
from services.stats.catalog import Catalog
from services.stats.metrics import Measured, Metrics
from services.stats.report import storage_report
from services.stats.streams import Streams, open_runs
from services.wire.seit import v1 as wire

API_VERSION = "1.1.0"

_GZIP_FROM_BYTES = 1024
_MAX_PAGE = 1000
_DOCS_PAGE = Path(__file__).parent / "pages" / "api.html"

router = APIRouter(prefix="/v1", tags=["what stands"])


def create_app(
    root: Store, settings: Settings | None = None, runs: Sequence[Store] | None = None
) -> FastAPI:
    """The service over the datasets below `root` and the streams of the runs in `runs`.

    settings: freshness and memory, by default from the environment.
    runs: folders of runs; None for those that the settings name.
    """
    settings = settings or load_settings()
    catalog = Catalog(
        root, fresh_seconds=settings.stats_fresh_seconds, shard_limit=settings.stats_shards
    )
    streams = Streams(
        open_runs(settings.stats_runs) if runs is None else runs,
        fresh_seconds=settings.stats_fresh_seconds,
        bytes_limit=settings.stats_stream_bytes,
    )
    app = FastAPI(
        title="SeiT++ data service",
        version=API_VERSION,
        description="Datasets of token shards: what stands on storage, how much it takes, and what"
        " flows into the runs that train on them. For Prometheus: /metrics.",
        docs_url=None,  # FastAPI's own pages load their scripts from the internet
        redoc_url=None,
    )
    app.state.catalog, app.state.streams = catalog, streams
    app.state.metrics = Metrics(catalog, streams)
    app.add_middleware(GZipMiddleware, minimum_size=_GZIP_FROM_BYTES)
    app.add_middleware(Measured, metrics=app.state.metrics)  # the last one added is outermost
    app.include_router(router, responses=_PROBLEMS)
    app.add_api_route("/healthz", healthz, tags=["operation"])
    app.add_api_route("/readyz", readyz, tags=["operation"], responses={503: _PROBLEMS[503]})
    app.add_api_route("/metrics", metrics, include_in_schema=False, response_class=Response)
    app.add_api_route("/docs", docs, include_in_schema=False, response_class=HTMLResponse)
    problems.install(app)
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        return _with_problem_media(describe())

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend the document
    return app


def _catalog(request: Request) -> Catalog:
    catalog: Catalog = request.app.state.catalog
    return catalog


def _streams(request: Request) -> Streams:
    streams: Streams = request.app.state.streams
    return streams


FromCatalog: TypeAlias = Annotated[Catalog, Depends(_catalog)]
FromStreams: TypeAlias = Annotated[Streams, Depends(_streams)]
Name: TypeAlias = Annotated[str, InPath(description="name of the dataset", examples=["digits"])]
Version: TypeAlias = Annotated[
    int | None, Query(ge=1, lt=2**63, description="version, by default the newest")
]
State: TypeAlias = Literal["running", "finished", "stopped", "failed", "stalled", "unreadable"]
Limit: TypeAlias = Annotated[int, Query(ge=1, le=_MAX_PAGE, description="entries of a page")]
Cursor: TypeAlias = Annotated[
    str, Query(max_length=200, description="`next` of the page before; empty for the first page")
]

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": wire.Problem, "description": "no such dataset, version, split or run"},
    409: {"model": wire.Problem, "description": "the manifest is damaged, or of a newer format"},
    422: {"model": wire.Problem, "description": "a value outside its valid range"},
    503: {"model": wire.Problem, "description": "the storage does not answer"},
}


@router.get("/datasets", response_model=wire.DatasetList)
def list_datasets(
    request: Request,
    response: Response,
    catalog: FromCatalog,
    limit: Limit = 100,
    cursor: Cursor = "",
) -> wire.DatasetList | Response:
    """Datasets in the order of their names, each by its newest version."""
    page = catalog.dataset_page(cursor, limit)
    return _unless_known(request, response, bytes(page)) or page


@router.get("/datasets/{name}", response_model=wire.DatasetSummary)
def get_dataset(
    request: Request, response: Response, catalog: FromCatalog, name: Name, version: Version = None
) -> wire.DatasetSummary | Response:
    """One dataset: its size, its token grid, its splits."""
    summary = catalog.summary(name, version)
    return _unless_known(request, response, bytes(summary)) or summary


@router.get("/datasets/{name}/versions", response_model=wire.DatasetList)
def list_versions(
    request: Request,
    response: Response,
    catalog: FromCatalog,
    name: Name,
    limit: Limit = 100,
    cursor: Cursor = "",
) -> wire.DatasetList | Response:
    """Versions of a dataset, newest first: how it grew."""
    if cursor and not (cursor.isascii() and cursor.isdigit()):
        raise InvalidInputError(
            f"cursor {cursor!r} is not one that this service gave out; start again without a cursor"
        )
    page = catalog.version_page(name, int(cursor) if cursor else None, limit)
    return _unless_known(request, response, bytes(page)) or page


@router.get("/datasets/{name}/shards", response_model=wire.ShardList)
def list_shards(
    request: Request,
    response: Response,
    catalog: FromCatalog,
    name: Name,
    version: Version = None,
    split: Annotated[str | None, Query(max_length=63, description="only this split")] = None,
    limit: Limit = 100,
    cursor: Cursor = "",
) -> wire.ShardList | Response:
    """Shards of a version in the order of its rows. All pages of a cursor show one version."""
    page, digest = catalog.shard_page(name, version, split, cursor, limit)
    return _unless_known(request, response, digest.encode()) or page


@router.get("/datasets/{name}/storage", response_model=wire.StorageReport)
def get_storage(
    request: Request, response: Response, catalog: FromCatalog, name: Name, version: Version = None
) -> wire.StorageReport | Response:
    """Bytes on storage, by split, against the source files, the pixels and the tokens' entropy."""
    loaded = catalog.manifest(name, version)
    known = _unless_known(request, response, loaded.digest.encode())
    return known or storage_report(loaded.manifest)


@router.get("/streams", response_model=wire.StreamList)
def list_streams(
    request: Request,
    response: Response,
    streams: FromStreams,
    state: Annotated[State | None, Query(description="only streams in this state")] = None,
    limit: Limit = 100,
    cursor: Cursor = "",
) -> wire.StreamList | Response:
    """Streams of all runs, newest first, each summed over its ranks."""
    page = streams.page(state, cursor, limit)
    return _unless_known(request, response, bytes(page)) or page


@router.get("/streams/{run}", response_model=wire.StreamInfo)
def get_stream(
    request: Request,
    response: Response,
    streams: FromStreams,
    run: Annotated[str, InPath(description="name of the run's folder", examples=["mtm"])],
) -> wire.StreamInfo | Response:
    """One run's stream: where it stands, what it waits for, and each of its ranks."""
    stream = streams.stream(run)
    return _unless_known(request, response, bytes(stream)) or stream


def healthz() -> dict[str, str]:
    """Whether the process answers. Says nothing of the storage."""
    return {"status": "ok"}


def readyz(catalog: FromCatalog, streams: FromStreams) -> dict[str, str]:
    """Whether datasets and runs can be listed: 503 while their storage does not answer."""
    catalog.datasets()
    streams.page(None, "", 1)
    return {"status": "ready"}


def metrics(request: Request) -> Response:
    """Streams, datasets and requests as Prometheus text."""
    known: Metrics = request.app.state.metrics
    return Response(known.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def docs() -> HTMLResponse:
    """The API for people: reads the OpenAPI document, needs nothing from outside."""
    return HTMLResponse(_DOCS_PAGE.read_text("utf-8"))


def _unless_known(request: Request, response: Response, identity: bytes) -> Response | None:
    """A 304 if the client holds this answer already; else None, and `response` gets the tag.

    identity: bytes that differ whenever the answer to this path and query would.
    """
    asked = f"{API_VERSION} {request.url.path}?{request.url.query}".encode()
    tag = f'W/"{xxhash.xxh3_128_hexdigest(asked + identity)}"'  # weak: gzip changes the bytes
    headers = {"etag": tag, "cache-control": "no-cache"}  # may be kept, must be asked for again
    response.headers.update(headers)
    held = {one.strip() for one in request.headers.get("if-none-match", "").split(",")}
    if held & {tag, tag.removeprefix("W/"), "*"}:
        return Response(status_code=304, headers=headers)
    return None


def _with_problem_media(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI documents every answer as plain JSON; errors are problem documents."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                content = answer.get("content", {})
                if int(status) >= 400 and "application/json" in content:
                    content[problems.PROBLEM_MEDIA] = content.pop("application/json")
    return document
