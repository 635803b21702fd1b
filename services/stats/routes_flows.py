"""Routes of what flows: streams of runs, and jobs of the cluster."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as InPath

from services.errors import NotFoundError
from services.stats.answers import answer
from services.stats.examples import example
from services.stats.paging import Page, parse_cursor
from services.stats.parameters import (
    CLUSTER,
    STREAMS,
    Cursor,
    Exact,
    Limit,
    Parts,
    State,
    at_once,
)
from services.wire.seit import v1 as wire

router = APIRouter(prefix="/v1", tags=["what flows"], route_class=Exact)


@router.get("/streams", response_model=wire.StreamList, responses=example(wire.StreamList))
@at_once
def list_streams(
    request: Request,
    parts: Parts,
    state: Annotated[State | None, Query(description="only streams in this state")] = None,
    limit: Limit = 100,
    cursor: Cursor = "",
) -> Response:
    """Streams of all runs, newest first, each summed over its ranks."""
    page = parts.streams.page(state, cursor, limit)
    page.streams = [_joined(parts, one) for one in page.streams]
    return answer(request, page, STREAMS, CLUSTER)


@router.get("/streams/{run}", response_model=wire.StreamInfo, responses=example(wire.StreamInfo))
@at_once
def get_stream(
    request: Request,
    parts: Parts,
    run: Annotated[str, InPath(description="name of the run's folder", examples=["mtm"])],
) -> Response:
    """One run's stream: where it stands, what it waits for, and each of its ranks."""
    stream = _joined(parts, parts.streams.stream(run))
    return answer(request, stream, STREAMS, CLUSTER)


@router.get("/jobs", response_model=wire.JobList, responses=example(wire.JobList))
@at_once
def list_jobs(request: Request, parts: Parts, limit: Limit = 100, cursor: Cursor = "") -> Response:
    """Jobs of the Ray cluster, newest first; `cluster.state` says whether it is reached."""
    _, start = parse_cursor(cursor, None)
    view = parts.cluster.view()
    jobs, following = Page(0, start, limit).cut(view.jobs)
    page = wire.JobList(cluster=view.cluster, jobs=list(jobs), next=following)
    return answer(request, page, CLUSTER)


@router.get("/jobs/{id}", response_model=wire.Job, responses=example(wire.Job))
@at_once
def get_job(
    request: Request,
    parts: Parts,
    id: Annotated[str, InPath(max_length=200, description="of the job, as the list names it")],
) -> Response:
    """One job of the Ray cluster."""
    view = parts.cluster.view()
    for job in view.jobs:
        if job.id == id:
            return answer(request, job, CLUSTER)
    raise NotFoundError(
        f"there is no job {id!r}; the list of jobs names those there are (the cluster is"
        f" {view.cluster.state})"
    )


def _joined(parts: Parts, stream: wire.StreamInfo) -> wire.StreamInfo:
    """The stream with what the cluster knows of its job."""
    actors = parts.cluster.view().actors.get(stream.name)
    return stream if actors is None else replace(stream, actors=actors)
