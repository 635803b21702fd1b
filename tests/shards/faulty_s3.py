"""A proxy before an object store's server that spoils what passes, on a schedule or at random."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeAlias

Fault: TypeAlias = int | str
_CODES = {
    403: "AccessDenied",
    404: "NoSuchUpload",
    500: "InternalError",
    501: "NotImplemented",
    502: "BadGateway",
    503: "SlowDown",
}
_SPOILT_BODIES = ("flip", "forge")
_STALL_SECONDS = 5.0  # longer than any client of the tests waits
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Chaos:
    """Faults on a random `share` of the requests, of all kinds alike, `limit` of them altogether.

    Never more than `MOST_IN_A_ROW` hit requests of one kind for one object, so that a client which
    tries again a bounded number of times comes through. Bits flip only in shards, whose checksums
    stand in the manifest, and not in two fetches in a row: a shard that is bad twice is taken for
    damaged on storage.
    """

    MOST_IN_A_ROW = 5

    def __init__(self, kinds: Sequence[Fault], limit: int, share: float, seed: int) -> None:
        self.injected: Counter[Fault] = Counter()
        self._kinds, self._limit, self._share = kinds, limit, share
        self._random = random.Random(seed)
        self._guard = threading.Lock()
        self._streaks: Counter[tuple[str, str]] = Counter()
        self._flipped: set[str] = set()

    @property
    def spent(self) -> bool:
        return self.injected.total() >= self._limit

    def choose(self, verb: str, path: str) -> Fault | None:
        name, _, query = path.partition("?")
        with self._guard:
            kinds = [kind for kind in self._kinds if self._suits(kind, verb, name, query)]
            calm = self.spent or self._streaks[verb, path] >= self.MOST_IN_A_ROW
            if calm or not kinds or self._random.random() >= self._share:
                self._streaks[verb, path] = 0
                self._flipped.discard(name)
                return None
            fault = min(kinds, key=lambda kind: (self.injected[kind], self._random.random()))
            self._streaks[verb, path] += 1
            self.injected[fault] += 1
            if fault in _SPOILT_BODIES:
                self._flipped.add(name)
            return fault

    def _suits(self, kind: Fault, verb: str, name: str, query: str) -> bool:
        if kind == "truncate":
            return verb == "GET"
        if kind == "spoil":
            return verb == "PUT" and not query
        if kind in _SPOILT_BODIES:
            return verb == "GET" and name.endswith(".parquet") and name not in self._flipped
        return True


class FaultyS3:
    """The proxy, at `url`.

    faults: what happens to the next requests, first to last; None lets one pass. An HTTP status;
        "reset" (the server acts, the answer is lost with the connection); "drop" (the connection
        is lost before the server acts); "stall" (no answer ever); "truncate", "flip" (a bit of the
        body) or "forge" (the same, without the checksum that would give it away); "spoil" (a bit
        of the body on its way to the server).
    chaos: asked once `faults` is empty.
    lenient: drop `If-None-Match` (S3) and `ifGenerationMatch` (Google), as a server does that
        knows no conditional writes.
    racing: conditional writes that meet there all look whether there is an object before any of
        them writes, as OpenStack Swift lets them. Without it they are forwarded one at a time, so
        that Swift behind the proxy is a server that holds the condition.
    """

    def __init__(self, host: str, port: int) -> None:
        self.faults: list[Fault | None] = []
        self.chaos: Chaos | None = None
        self.lenient = False
        self.racing: threading.Barrier | None = None
        self.made: set[str] = set()
        self.turn = threading.Lock()
        self.requests = 0
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self, host, port))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def next_fault(self, verb: str, path: str) -> Fault | None:
        self.requests += 1
        if self.faults:
            return self.faults.pop(0)
        return self.chaos.choose(verb, path) if self.chaos else None

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        self.close_request(request)  # without the polite end that would come before a reset

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that give up, or are killed, are what the tests are about."""


def _handler(proxy: FaultyS3, host: str, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            fault = proxy.next_fault(self.command, self.path)
            if len(body) < length or fault == "drop":  # a client that was killed, or shall think so
                self.reset()
                return
            if fault == "stall":
                proxy.closing.wait(_STALL_SECONDS)
                self.reset()
                return
            if isinstance(fault, int):
                text = f"<Error><Code>{_CODES[fault]}</Code><Message>injected</Message></Error>"
                self.reply(fault, [], text.encode())
                return
            status, answers, data = self.forward(_flipped(body) if fault == "spoil" else body)
            if fault == "reset":
                self.reset()
                return
            if fault in _SPOILT_BODIES:
                data = _flipped(data)
            if fault == "forge":
                answers = [pair for pair in answers if "checksum" not in pair[0].lower()]
            self.reply(status, answers, data, cut=fault == "truncate")

        def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            headers = dict(self.headers.items())
            path = self.path.replace("ifGenerationMatch=0", "") if proxy.lenient else self.path
            condition = [name for name in headers if name.lower() == "if-none-match"]
            if not condition:
                return self.ask(self.command, path, body, headers)
            if proxy.racing:
                stands = path in proxy.made
                try:
                    proxy.racing.wait()
                except threading.BrokenBarrierError:  # none came that it could have met
                    proxy.racing.reset()
                if not stands:
                    del headers[condition[0]]
                proxy.made.add(path)
            if proxy.lenient:
                del headers[condition[0]]
            with contextlib.nullcontext() if proxy.racing else proxy.turn:
                return self.ask(self.command, path, body, headers)

        def ask(
            self, verb: str, path: str, body: bytes, headers: dict[str, str]
        ) -> tuple[int, list[tuple[str, str]], bytes]:
            back = http.client.HTTPConnection(host, port, timeout=30)
            try:
                back.request(verb, path, body, headers)
                found = back.getresponse()
                return found.status, found.getheaders(), found.read()
            finally:
                back.close()

        def reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            self.close_connection = True

        def reply(
            self, status: int, headers: list[tuple[str, str]], data: bytes, cut: bool = False
        ) -> None:
            skip = {"content-length", "connection", "transfer-encoding", "server", "date"}
            length = len(data)
            if self.command == "HEAD":
                length = int(dict(headers).get("Content-Length", 0))
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in skip:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: length // 2] if cut else data)
            if cut:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the tests count requests instead."""

    for verb in ("GET", "PUT", "HEAD", "DELETE", "POST"):
        setattr(Handler, f"do_{verb}", Handler.answer)
    return Handler


def _flipped(data: bytes) -> bytes:
    """One bit of a byte in the first third is another."""
    place = len(data) // 3
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] if data else data
