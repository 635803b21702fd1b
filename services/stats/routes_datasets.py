"""Routes of what stands: datasets, versions, shards, storage, labels, codes."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from services.stats.answers import answer
from services.stats.content import CodeSort, LabelSort, code_report, label_report
from services.stats.examples import example
from services.stats.health import health_report
from services.stats.listing import ShardQuery, ShardSort
from services.stats.paging import Page, parse_cursor, parse_number
from services.stats.parameters import (
    CATALOG,
    FOLDERS,
    STREAMS,
    Cursor,
    Exact,
    Few,
    Limit,
    Name,
    Parts,
    Split,
    Version,
    at_once,
)
from services.wire.seit import v1 as wire

router = APIRouter(prefix="/v1/datasets", tags=["what stands"], route_class=Exact)


@router.get("", response_model=wire.DatasetList, responses=example(wire.DatasetList))
@at_once
def list_datasets(
    request: Request, parts: Parts, limit: Limit = 100, cursor: Cursor = ""
) -> Response:
    """Datasets in the order of their names, each by its newest version."""
    page = parts.catalog.dataset_page(cursor, limit)
    return answer(request, page, CATALOG)


@router.get("/{name}", response_model=wire.DatasetSummary, responses=example(wire.DatasetSummary))
@at_once
def get_dataset(request: Request, parts: Parts, name: Name, version: Version = None) -> Response:
    """One dataset: its size, its token grid, its splits."""
    summary = parts.catalog.summary(name, version)
    return answer(request, summary, CATALOG)


@router.get(
    "/{name}/versions", response_model=wire.DatasetList, responses=example(wire.DatasetList)
)
@at_once
def list_versions(
    request: Request, parts: Parts, name: Name, limit: Limit = 100, cursor: Cursor = ""
) -> Response:
    """Versions of a dataset, newest first."""
    page = parts.catalog.version_page(name, parse_number(cursor), limit)
    return answer(request, page, CATALOG)


@router.get("/{name}/shards", response_model=wire.ShardList, responses=example(wire.ShardList))
@at_once
def list_shards(
    request: Request,
    parts: Parts,
    name: Name,
    version: Version = None,
    split: Split = None,
    label: Annotated[
        int | None, Query(ge=-1, lt=2**31, description="only shards that hold rows of this label")
    ] = None,
    contains: Annotated[
        str, Query(max_length=200, description="only shards with this in their path")
    ] = "",
    column: Annotated[
        str, Query(max_length=63, description="only shards that have this added column")
    ] = "",
    sort: Annotated[
        ShardSort, Query(description="row: the rows' order; - turns it around")
    ] = "row",
    limit: Limit = 100,
    cursor: Cursor = "",
) -> Response:
    """Shards of a version. All pages of a cursor show one version; ask with the same filters."""
    query = ShardQuery(split, label, contains, column, sort)
    page = parts.catalog.shard_page(name, version, query, cursor, limit)
    return answer(request, page, CATALOG)


@router.get(
    "/{name}/storage", response_model=wire.StorageReport, responses=example(wire.StorageReport)
)
@at_once
def get_storage(request: Request, parts: Parts, name: Name, version: Version = None) -> Response:
    """Bytes on storage, by split, against the source files, the pixels and the tokens' entropy.

    `folder` compares the dataset's files with what its versions name; it is absent until the files
    have been listed, which the first question begins.
    """
    standing = parts.catalog.facts(name, version).storage
    report = replace(standing, folder=parts.catalog.folder(name))
    return answer(request, report, CATALOG, FOLDERS)


@router.get(
    "/{name}/growth", response_model=wire.GrowthReport, responses=example(wire.GrowthReport)
)
@at_once
def get_growth(
    request: Request, parts: Parts, name: Name, limit: Few = 20, cursor: Cursor = ""
) -> Response:
    """What each version added to the folder, and what it shares with the one before it."""
    report = parts.catalog.growth_page(name, parse_number(cursor), limit)
    return answer(request, report, CATALOG)


@router.get("/{name}/labels", response_model=wire.LabelReport, responses=example(wire.LabelReport))
@at_once
def get_labels(
    request: Request,
    parts: Parts,
    name: Name,
    version: Version = None,
    split: Split = None,
    sort: Annotated[LabelSort, Query(description="- for the largest first")] = "-rows",
    limit: Limit = 100,
    cursor: Cursor = "",
) -> Response:
    """Rows of each class, and how evenly they are spread."""
    version, start = parse_cursor(cursor, version)
    facts = parts.catalog.facts(name, version)
    page = Page(facts.about.version, start, limit)
    report = label_report(facts, split, sort, page)
    return answer(request, report, CATALOG)


@router.get("/{name}/codes", response_model=wire.CodeReport, responses=example(wire.CodeReport))
@at_once
def get_codes(
    request: Request,
    parts: Parts,
    name: Name,
    version: Version = None,
    split: Split = None,
    sort: Annotated[CodeSort, Query(description="- for the most frequent first")] = "-tokens",
    limit: Limit = 100,
    cursor: Cursor = "",
) -> Response:
    """How often each code of the codebook occurs: dead codes, entropy, perplexity."""
    version, start = parse_cursor(cursor, version)
    facts = parts.catalog.facts(name, version)
    page = Page(facts.about.version, start, limit)
    report = code_report(facts, split, sort, page)
    return answer(request, report, CATALOG)


@router.get(
    "/{name}/health", response_model=wire.HealthReport, responses=example(wire.HealthReport)
)
@at_once
def get_health(request: Request, parts: Parts, name: Name, version: Version = None) -> Response:
    """What is wrong with a version, or may be, the gravest first; runs that read it included."""
    facts = parts.catalog.facts(name, version)
    folder = parts.catalog.folder(name) if version is None else None
    standing = parts.catalog.findings(name, version)
    report = health_report(facts, standing, folder, parts.streams.all())
    return answer(request, report, CATALOG, FOLDERS, STREAMS)
