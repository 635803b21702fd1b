"""What stands before every request: who may ask, how often, how much, how long; and the headers
that keep a browser from doing more with an answer than showing it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from http import HTTPStatus

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.stats.access import READ, SAMPLES, Access
from services.stats.problems import problem

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'self';"
    " frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_RAW_HEADERS = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
_MAX_TARGET_BYTES = 8 << 10  # of path and query
_MAX_HEADER_BYTES = 32 << 10
_MAX_CLIENTS = 10_000
_BURST_SECONDS = 2.0
_CLOSED = ("/v1/", "/metrics", "/openapi.json")
"""What needs a token, where tokens are asked for. The pages hold no data, and probes have none."""
_NAMED = ("/v1/datasets/", "/v1/streams/")  # before a name that people choose


class Rates:
    """A bucket for each client: `per_second` requests, and twice that at once.

    Memory is bounded: of more than 10,000 clients those that asked longest ago are forgotten.
    clock: seconds, monotonic.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = per_second, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_seconds(self, client: str) -> float:
        """0 if the client may ask now, and then that is counted; else when it may again."""
        most, now = self._rate * _BURST_SECONDS, self._clock()
        left, at = self._buckets.pop(client, (most, now))
        left = min(most, left + (now - at) * self._rate)
        allowed = left >= 1
        self._buckets[client] = (left - 1 if allowed else left, now)
        if len(self._buckets) > _MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._rate


class Guard:
    """ASGI middleware in front of everything but the measuring of requests.

    seconds: longest time that one answer may take.
    """

    def __init__(self, app: ASGIApp, access: Access, rates: Rates, seconds: float) -> None:
        self._app, self._access, self._rates, self._seconds = app, access, rates, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # What asks for the head alone is answered as a GET, all but the body: `asked` is what the
        # rest of the service sees, `scope` what the server and the measuring know of it.
        head_only = scope["method"] == "HEAD"
        asked = {**scope, "method": "GET"} if head_only else scope
        begun = False

        async def guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                known = {name for name, _ in message["headers"]}
                added = (one for one in _RAW_HEADERS if one[0] not in known)
                message["headers"] = [*message["headers"], *added]
            elif head_only:
                message = {**message, "body": b""}
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            status, detail, more = refusal
            await problem(Request(scope), status, detail, more)(scope, receive, guarded)
            return
        try:
            async with asyncio.timeout(self._seconds):
                await self._app(asked, receive, guarded)
        except TimeoutError:
            if begun:
                raise  # too late for another answer: the connection ends
            detail = (
                f"no answer within {self._seconds:g} s, the storage may be slow; ask again later,"
                " or for less"
            )
            answer = problem(Request(scope), HTTPStatus.SERVICE_UNAVAILABLE, detail)
            await answer(scope, receive, guarded)
        finally:
            if "route" in asked:
                scope["route"] = asked["route"]

    def _refusal(self, scope: Scope) -> tuple[HTTPStatus, str, dict[str, str]] | None:
        headers = dict(scope["headers"])
        target = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if target > _MAX_TARGET_BYTES:
            detail = f"path and query have {target:,} bytes, at most {_MAX_TARGET_BYTES:,} are read"
            return HTTPStatus.REQUEST_URI_TOO_LONG, detail, {}
        if sum(len(name) + len(value) for name, value in scope["headers"]) > _MAX_HEADER_BYTES:
            detail = f"the headers have more than {_MAX_HEADER_BYTES:,} bytes"
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail, {}
        if headers.get(b"content-length", b"0").strip() != b"0" or b"transfer-encoding" in headers:
            detail = (
                "the request has a body; this service is read-only and reads none: leave it out"
            )
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, {"connection": "close"}
        client = scope["client"][0] if scope.get("client") else "unknown"
        if not self._access.open and scope["path"].startswith(_CLOSED):
            kind, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
            grant = self._access.grant(token.strip()) if kind.lower() == "bearer" else None
            if grant is None:
                # Counted by address before it is known, so that nobody tries tokens at leisure.
                limited = self._limited(client)
                detail = (
                    "a bearer token is needed, and this request has none that is known: make one"
                    " with `seit token`; `seit stats` takes it from SEIT_STATS_TOKEN"
                )
                more = {"www-authenticate": 'Bearer realm="seit"'}
                return limited or (HTTPStatus.UNAUTHORIZED, detail, more)
            wanted = SAMPLES if _is_of_rows(scope["path"]) else READ
            if wanted not in grant.roles:
                return HTTPStatus.FORBIDDEN, f"this token has no role {wanted!r}", {}
            client = f"token {grant.name}"
        return self._limited(client)

    def _limited(self, client: str) -> tuple[HTTPStatus, str, dict[str, str]] | None:
        wait = self._rates.wait_seconds(client)
        if not wait:
            return None
        detail = "more requests than one client may make in this time; wait, then ask again"
        return HTTPStatus.TOO_MANY_REQUESTS, detail, {"retry-after": str(math.ceil(wait))}


def _is_of_rows(path: str) -> bool:
    """Whether it is about a dataset's rows, and not a dataset or run that is called `samples…`."""
    place = next((place for place in _NAMED if path.startswith(place)), "")
    below = path.removeprefix(place).partition("/")[2] if place else path
    return "/samples" in f"/{below}"
