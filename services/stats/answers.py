"""A message of `proto/` as an answer: JSON or protobuf by `Accept`, with a tag by which a client
that holds it already is told so.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import betterproto2
import xxhash
from fastapi import Request, Response

from services.stats.written import Written, adapter
from services.wire.seit import v1 as wire

API_VERSION = "1.3.0"

JSON, PROTOBUF = "application/json", "application/x-protobuf"
_MEDIA = {
    "application/json": JSON,
    "application/*": JSON,
    "*/*": JSON,
    "application/x-protobuf": PROTOBUF,
    "application/protobuf": PROTOBUF,
    "application/vnd.google.protobuf": PROTOBUF,
}


def answer(
    request: Request, content: betterproto2.Message | Written[Any], *sources: str
) -> Response:
    """A message as the client wants it, or 304 if it holds this answer already.

    sources: what it was made from (see `kept`); none for an answer that must not be kept.
    """
    media = wanted(request.headers.get("accept", ""))
    if isinstance(content, Written):
        body = content.json
    else:
        body = adapter(type(content)).dump_json(content)
    asked = f"{API_VERSION} {media} {request.url.path}?{request.url.query}".encode()
    tag = f'W/"{xxhash.xxh3_128_hexdigest(asked + body)}"'  # weak: gzip changes the bytes
    headers = tagged(tag)
    request.state.sources = sources
    if holds(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=headers)
    if media == PROTOBUF:
        body = bytes(content.message() if isinstance(content, Written) else content)
    return Response(body, headers=headers, media_type=media)


def tagged(tag: str) -> dict[str, str]:
    """Headers of an answer that a client may keep, but must ask for again."""
    return {"etag": tag, "cache-control": "no-cache", "vary": "accept, authorization"}


def holds(if_none_match: str, tag: str) -> bool:
    """Whether the header names the tag: the client has the answer."""
    held = {one.strip() for one in if_none_match.split(",")}
    return bool(held & {tag, tag.removeprefix("W/"), "*"})


@lru_cache(1000)
def wanted(accept: str) -> str:
    """JSON or protobuf, whichever the header prefers; JSON where it says nothing that is known."""
    best, chosen = 0.0, JSON
    for part in accept[:1000].split(","):
        name, *parameters = (one.strip().lower() for one in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
        if name in _MEDIA and quality > best:
            best, chosen = quality, _MEDIA[name]
    return chosen


PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"model": wire.Problem, "description": "no token that is known, where one is needed"},
    403: {"model": wire.Problem, "description": "the token lacks the role that this needs"},
    404: {"model": wire.Problem, "description": "no such dataset, version, split, row or run"},
    409: {"model": wire.Problem, "description": "what stands there is damaged, or too new"},
    422: {"model": wire.Problem, "description": "a parameter not taken, or a value not valid"},
    429: {"model": wire.Problem, "description": "too many requests of this client"},
    503: {"model": wire.Problem, "description": "the storage does not answer"},
}
"""Errors that every path of `/v1` may answer with."""
