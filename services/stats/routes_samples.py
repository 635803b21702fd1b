"""Routes of the rows themselves: who may see these needs the role `samples`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import numpy as np
from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as InPath

from services.stats.answers import answer, holds, tagged
from services.stats.decoding import PLAIN, VIEWS
from services.stats.examples import example
from services.stats.paging import Page, parse_cursor
from services.stats.parameters import Cursor, Exact, Few, FromParts, Name, Parts, Split, Version
from services.stats.samples import check_view, default_split
from services.wire.seit import v1 as wire

router = APIRouter(prefix="/v1/datasets/{name}/samples", tags=["samples"], route_class=Exact)

_PNG = "image/png"
SplitPart = Annotated[str, InPath(max_length=63, description="split", examples=["train"])]
Row = Annotated[int, InPath(ge=0, lt=2**63, description="number of the row within the split")]


@router.get("", response_model=wire.SampleList, responses=example(wire.SampleList))
def list_samples(
    request: Request,
    parts: FromParts,
    name: Name,
    version: Version = None,
    split: Split = None,
    limit: Few = 24,
    cursor: Cursor = "",
) -> Response:
    """Rows of a split in their order, by default of the first that has any, without their ids."""
    version, start = parse_cursor(cursor, version)
    facts = parts.catalog.facts(name, version)
    page = Page(facts.about.version, start, limit)
    found = parts.rows.page(facts, split or default_split(facts), page)
    views, found.undecodable = parts.decoder.views(facts.about)
    found.views = list(views)
    return answer(request, found)


@router.get("/{split}/{row}", response_model=wire.Sample, responses=example(wire.Sample))
def get_sample(
    request: Request,
    parts: FromParts,
    name: Name,
    split: SplitPart,
    row: Row,
    version: Version = None,
) -> Response:
    """One row, with its ids in the order of its grid."""
    sample = parts.rows.one(parts.catalog.facts(name, version), split, row)
    return answer(request, sample)


@router.get(
    "/{split}/{row}/picture",
    response_class=Response,
    responses={200: {"content": {_PNG: {}}, "description": "the decoded row"}},
)
async def get_picture(
    request: Request,
    parts: FromParts,
    name: Name,
    split: SplitPart,
    row: Row,
    version: Version = None,
    view: Annotated[str, Query(max_length=20, description=f"one of {', '.join(VIEWS)}")] = PLAIN,
    draw: Annotated[int, Query(ge=0, lt=2**31, description="seed of the random draws")] = 0,
) -> Response:
    """One row decoded as a PNG file: as it is, or after one augmentation.

    404 where the dataset has no tokenizer, or the view needs what is not there.
    """
    # Not in the threads of all answers: a page asks for many pictures at once.
    make = partial(_picture, request, parts, name, version, split, row, view, draw)
    return await to_thread.run_sync(make, limiter=parts.picturing)


def _picture(
    request: Request,
    parts: Parts,
    name: str,
    version: int | None,
    split: str,
    row: int,
    view: str,
    draw: int,
) -> Response:
    check_view(view, VIEWS)
    facts = parts.catalog.facts(name, version)
    tag = f'"{facts.digest}-{split}-{row}-{view}-{draw}"'
    ids = parts.rows.ids(facts, split, row)
    if holds(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=tagged(tag))
    partner = row + 1 if row == 0 else row - 1
    try:
        other = parts.rows.ids(facts, split, partner)
    except LookupError:  # a split of one row: it is its own partner
        partner, other = row, ids
    data = parts.decoder.picture(facts, np.stack([ids, other]), (row, partner), view, draw)
    return Response(data, media_type=_PNG, headers=tagged(tag))
