"""Connections whose clients take their time: uvicorn waits for the rest of a request, and for the
answer to be read, for ever."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

REQUEST_SECONDS = 10.0
"""Longest time from a connection's beginning, or from the first byte behind an answer, until the
head of a request is whole. A client needs milliseconds; a thousand that say nothing would keep all
others out (`limit_concurrency`)."""

ANSWER_SECONDS = 60.0
"""Longest time that the last of an answer, which is made and sent, may lie here unread."""


class Patient(HttpToolsProtocol):
    """HTTP as uvicorn speaks it, for clients that end their requests and read the answers."""

    _limit: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Wait no longer where the request is whole, else as long as was said before."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._limit is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for."""
        self._stop()
        self._read()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Begin to wait until it is read; no time where the system's buffers hold it."""
        super().on_response_complete()
        self._read()
        if self.transport.get_write_buffer_size():
            self._unread = self.loop.call_later(ANSWER_SECONDS, self._cut)

    def _cut(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # to close it would wait for the client again

    def _read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _wait(self) -> None:
        self._limit = self.loop.call_later(REQUEST_SECONDS, self.transport.close)

    def _stop(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
