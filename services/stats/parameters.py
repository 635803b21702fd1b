"""What a request may carry, declared once for all routes, and the parts of the service they use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from fastapi import Depends, Query, Request
from fastapi import Path as InPath

from services.stats.catalog import Catalog
from services.stats.cluster import RayCluster
from services.stats.decoding import Decoder
from services.stats.samples import Rows
from services.stats.streams import Streams

MAX_PAGE = 1000

CATALOG, FOLDERS, STREAMS, CLUSTER = "catalog", "folders", "streams", "cluster"
"""What answers are made from, as `kept` knows it."""


@dataclass(frozen=True)
class Parts:
    """What the routes answer from."""

    catalog: Catalog
    streams: Streams
    cluster: RayCluster
    rows: Rows
    decoder: Decoder


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


FromParts: TypeAlias = Annotated[Parts, Depends(_parts)]
Name: TypeAlias = Annotated[str, InPath(description="name of the dataset", examples=["digits"])]
Version: TypeAlias = Annotated[
    int | None, Query(ge=1, lt=2**63, description="version, by default the newest")
]
Split: TypeAlias = Annotated[str | None, Query(max_length=63, description="only this split")]
State: TypeAlias = Literal["running", "finished", "stopped", "failed", "stalled", "unreadable"]
Limit: TypeAlias = Annotated[int, Query(ge=1, le=MAX_PAGE, description="entries of a page")]
Few: TypeAlias = Annotated[int, Query(ge=1, le=100, description="entries of a page")]
Cursor: TypeAlias = Annotated[
    str, Query(max_length=200, description="`next` of the page before; empty for the first page")
]
