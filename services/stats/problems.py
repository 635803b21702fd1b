"""Errors as `application/problem+json` (RFC 9457), for every path and method of the service."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

import pydantic
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from services.errors import InvalidInputError, NotFoundError, SeitError, StoreError
from services.wire.seit import v1 as wire

logger = logging.getLogger(__name__)

PROBLEM_MEDIA = "application/problem+json"
_ADAPTER = pydantic.TypeAdapter(wire.Problem)

_STATUS: tuple[tuple[type[SeitError], HTTPStatus], ...] = (
    (InvalidInputError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (NotFoundError, HTTPStatus.NOT_FOUND),
    (StoreError, HTTPStatus.SERVICE_UNAVAILABLE),
    # what stands under the name asked for is damaged, or newer than this program
    (SeitError, HTTPStatus.CONFLICT),
)
_HINTS = {
    HTTPStatus.NOT_FOUND: "nothing answers at this path; /docs lists what there is",
    HTTPStatus.METHOD_NOT_ALLOWED: "this service is read-only: use GET",
}


def install(app: FastAPI, places: Mapping[str, str]) -> None:
    """Make every error of `app` a problem document; none shows a trace.

    The handlers are coroutines, though they await nothing: Starlette would run plain functions in
    the threads that routes wait for the storage in, and a 404 would wait with them.

    places: addresses that are the operator's own, and what stands for them in an answer.
    """

    async def on_seit_error(request: Request, error: Exception) -> Response:
        status = next(status for kind, status in _STATUS if isinstance(error, kind))
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            logger.error("%s: %s", request.url.path, error)
        detail = str(error)
        for place in sorted(places, key=len, reverse=True):
            detail = detail.replace(place, places[place])
        return problem(request, status, detail)

    app.add_exception_handler(SeitError, on_seit_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_defect)


def problem(
    request: Request,
    status: HTTPStatus,
    detail: str,
    headers: dict[str, str] | None = None,
) -> Response:
    """The answer for one error. `instance` is the path as asked, `title` the status in words."""
    document = wire.Problem(
        type="about:blank",
        title=status.phrase,
        status=status,
        detail=detail,
        instance=request.url.path,
    )
    return Response(_ADAPTER.dump_json(document), status, headers, media_type=PROBLEM_MEDIA)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    detail = "; ".join(
        f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()
    )
    return problem(request, HTTPStatus.UNPROCESSABLE_ENTITY, detail)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    headers = dict(error.headers) if error.headers else None
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers = {"allow": "GET, HEAD"}  # the guard answers HEAD, of which no route knows
    return problem(request, status, _HINTS.get(status, str(error.detail)), headers)


async def _on_defect(request: Request, error: Exception) -> Response:
    logger.error("%s: a defect of this service", request.url.path, exc_info=error)
    return problem(
        request, HTTPStatus.INTERNAL_SERVER_ERROR, "a defect of this service; its log has more"
    )
