"""Finished answers at hand: sent again as they are, until what they were made from changes.

A route names the sources of its answer (`answers.answer`). Each source has a stamp that changes
with what it says of the path, and costs nothing to read; an answer is good for as long as the
stamps are those that were read before it was made. So nothing old is ever sent, and a repeated
question costs no more than finding its bytes, already compressed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.stats.answers import holds, wanted

Key: TypeAlias = tuple[bytes, bytes, str, bool]
RawHeaders: TypeAlias = list[tuple[bytes, bytes]]

_OVERHEAD_BYTES = 1000  # of an entry, besides its body and what was asked
_LARGEST_SHARE = 8  # an answer larger than this part of the limit would drop too many others


@dataclass(frozen=True)
class _Kept:
    stamps: Mapping[str, int]
    headers: RawHeaders
    tag: str
    body: bytes
    route: Any  # for the metrics


class Kept:
    """ASGI middleware between the guard and the compression.

    sources: name to stamp of a path, None for a source that would have to be asked.
    limit_bytes: of all answers; beyond it those used least recently go.
    """

    def __init__(
        self, app: ASGIApp, sources: Mapping[str, Callable[[str], int | None]], limit_bytes: int
    ) -> None:
        self._app, self._sources, self._limit = app, sources, limit_bytes
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()  # of one event loop: no lock
        self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        key = (
            scope.get("raw_path") or scope["path"].encode(),
            scope["query_string"],
            wanted(headers.get(b"accept", b"").decode("latin-1")),
            b"gzip" in headers.get(b"accept-encoding", b""),
        )
        kept = self._kept.get(key)
        if kept is not None and all(
            self._sources[name](scope["path"]) == stamp for name, stamp in kept.stamps.items()
        ):
            self._kept.move_to_end(key)
            scope["route"] = kept.route
            await _send(kept, headers.get(b"if-none-match", b"").decode("latin-1"), send)
            return
        await self._make(key, scope, receive, send)

    async def _make(self, key: Key, scope: Scope, receive: Receive, send: Send) -> None:
        stamps = {name: stamp(scope["path"]) for name, stamp in self._sources.items()}
        state = scope.setdefault("state", {})
        status, raw, parts = 0, [], []

        async def watch(message: Message) -> None:
            nonlocal status, raw
            if message["type"] == "http.response.start":
                status, raw = message["status"], list(message["headers"])
            elif message["type"] == "http.response.body":
                parts.append(message.get("body", b""))
            await send(message)

        await self._app(scope, receive, watch)
        sources = state.get("sources", ())
        found = {name: stamps[name] for name in sources if stamps[name] is not None}
        if status == 200 and sources and len(found) == len(sources):
            tag = dict(raw)[b"etag"].decode("latin-1")
            good = {name: stamp for name, stamp in found.items() if stamp is not None}
            self._keep(key, _Kept(good, raw, tag, b"".join(parts), scope.get("route")))

    def _keep(self, key: Key, kept: _Kept) -> None:
        size = _size(key, kept)
        if size * _LARGEST_SHARE > self._limit:
            return
        self._drop(key)
        self._kept[key] = kept
        self._bytes += size
        while self._bytes > self._limit:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: Key) -> None:
        dropped = self._kept.pop(key, None)
        if dropped is not None:
            self._bytes -= _size(key, dropped)


def _size(key: Key, kept: _Kept) -> int:
    path, query, *_ = key
    return len(path) + len(query) + len(kept.body) + _OVERHEAD_BYTES


async def _send(kept: _Kept, if_none_match: str, send: Send) -> None:
    status, headers, body = 200, kept.headers, kept.body
    if if_none_match and holds(if_none_match, kept.tag):
        shown = (b"etag", b"cache-control", b"vary")
        status, body = 304, b""
        headers = [(name, value) for name, value in headers if name in shown]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
