"""What a request may carry, declared once for all routes, and the parts of the service they use."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, Literal, TypeAlias

from anyio import CapacityLimiter
from fastapi import Depends, Query, Request, Response
from fastapi import Path as InPath
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute

from services.errors import InvalidInputError
from services.stats.catalog import Catalog
from services.stats.cluster import RayCluster
from services.stats.decoding import Decoder
from services.stats.paging import names
from services.stats.samples import Rows
from services.stats.streams import Streams

MAX_PAGE = 1000

CATALOG, FOLDERS, STREAMS, CLUSTER = "catalog", "folders", "streams", "cluster"
"""What answers are made from, as `kept` knows it."""


@dataclass(frozen=True)
class Parts:
    """What the routes answer from.

    picturing: threads that pictures are made in, beside those that all other answers share.
    """

    catalog: Catalog
    streams: Streams
    cluster: RayCluster
    rows: Rows
    decoder: Decoder
    picturing: CapacityLimiter


class Exact(APIRoute):
    """A route that refuses a query with a parameter that it does not take, or takes only once.

    Passed over, a misspelt `limit` or `version` would be a wrong answer that looks right.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        taken = [one.alias for one in self.dependant.query_params]

        async def exact(request: Request) -> Response:
            if request.query_params:
                given = Counter(name for name, _ in request.query_params.multi_items())
                _check_names(self.path, given, taken)
            return await handle(request)

        return exact


def _check_names(path: str, given: Mapping[str, int], taken: list[str]) -> None:
    unknown = [repr(name) for name in given if name not in taken]
    if unknown:
        raise InvalidInputError(
            f"{path} takes {', '.join(taken) or 'none'} in its query, and not {names(unknown)}:"
            " correct the name, or leave it out"
        )
    twice = [repr(name) for name, times in given.items() if times > 1]
    if twice:
        raise InvalidInputError(
            f"{names(twice)} is given twice, and {path} takes one value of it: leave the other out"
        )


def at_once(route: Callable[..., Response]) -> Callable[..., Awaitable[Response]]:
    """A route that answers in the event loop where all it needs is in memory, else in a thread.

    A thread has to fight for Python's lock with the loop; what takes a millisecond is done sooner
    without. Its `parts` are given to it here: to FastAPI they would be one more dependency to
    solve, which takes as long as many an answer.
    """

    @wraps(route)
    async def answering(request: Request, **values: Any) -> Response:
        parts: Parts = request.app.state.parts
        if _at_hand(parts, values):
            return route(request, parts=parts, **values)
        return await run_in_threadpool(route, request, parts=parts, **values)

    asked = inspect.signature(route)
    shown = [one for one in asked.parameters.values() if one.name != "parts"]
    answering.__signature__ = asked.replace(parameters=shown)  # type: ignore[attr-defined]
    return answering


def _at_hand(parts: Parts, values: Mapping[str, Any]) -> bool:
    if parts.streams.stamp() is None or parts.cluster.stamp() is None:
        return False
    name, version, cursor = (values.get(key) for key in ("name", "version", "cursor"))
    if name is None:
        return parts.catalog.at_hand(None)
    if "version" not in values:  # it tells of all versions
        return parts.catalog.history_at_hand(name)
    if cursor and (begun := cursor.partition(".")[0]).isdecimal():
        version = int(begun)
    return parts.catalog.at_hand(name, version)


async def _parts(request: Request) -> Parts:  # a plain function would be run in a thread
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
