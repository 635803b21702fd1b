"""The HTTP service over a root of datasets: `/v1`, read-only, from manifests alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import xxhash
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import HTMLResponse

from services.errors import InvalidInputError
from services.settings import Settings, load_settings
from services.shards.store import Store
from services.stats import problems
from services.stats.catalog import Catalog
from services.stats.report import storage_report
from services.wire.seit import v1 as wire

API_VERSION = "1.0.0"

_GZIP_FROM_BYTES = 1024
_MAX_PAGE = 1000
_DOCS_PAGE = Path(__file__).parent / "pages" / "api.html"

router = APIRouter(prefix="/v1", tags=["what stands"])


def create_app(root: Store, settings: Settings | None = None) -> FastAPI:
    """The service over the datasets below `root`.

    settings: freshness and memory, by default from the environment.
    """
    settings = settings or load_settings()
    app = FastAPI(
        title="SeiT++ data service",
        version=API_VERSION,
        description="Datasets of token shards: what stands on storage, and how much it takes.",
        docs_url=None,  # FastAPI's own pages load their scripts from the internet
        redoc_url=None,
    )
    app.state.catalog = Catalog(
        root, fresh_seconds=settings.stats_fresh_seconds, shard_limit=settings.stats_shards
    )
    app.add_middleware(GZipMiddleware, minimum_size=_GZIP_FROM_BYTES)
    app.include_router(router, responses=_PROBLEMS)
    app.add_api_route("/healthz", healthz, tags=["operation"])
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


FromCatalog: TypeAlias = Annotated[Catalog, Depends(_catalog)]
Name: TypeAlias = Annotated[str, InPath(description="name of the dataset", examples=["digits"])]
Version: TypeAlias = Annotated[
    int | None, Query(ge=1, lt=2**63, description="version, by default the newest")
]
Limit: TypeAlias = Annotated[int, Query(ge=1, le=_MAX_PAGE, description="entries of a page")]
Cursor: TypeAlias = Annotated[
    str, Query(max_length=100, description="`next` of the page before; empty for the first page")
]

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": wire.Problem, "description": "no such dataset, version or split"},
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


def healthz() -> dict[str, str]:
    """Whether the process answers. Says nothing of the storage."""
    return {"status": "ok"}


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
