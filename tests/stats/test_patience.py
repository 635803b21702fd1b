"""Clients that begin a request and never end it are not waited for; slow ones that do are."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from services.settings import load_settings
from services.shards.store import Store
from services.stats import patience
from services.stats.app import create_app
from services.stats.patience import Patient

WAIT = 0.5
MOST = 8
LARGE = 64 << 20  # more than the system's buffers hold
WHOLE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@contextlib.contextmanager
def served(app: Any) -> Iterator[uvicorn.Server]:
    """A server that takes few connections."""
    config = uvicorn.Config(
        app, http=Patient, port=0, log_level="error", limit_concurrency=MOST, lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join()


def port_of(server: uvicorn.Server) -> int:
    number: int = server.servers[0].sockets[0].getsockname()[1]
    return number


@pytest.fixture
def port(root: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of the service, which waits shortly."""
    monkeypatch.setattr(patience, "REQUEST_SECONDS", WAIT)
    with served(create_app(root, load_settings({}))) as server:
        yield port_of(server)


async def large(scope: Any, receive: Any, send: Any) -> None:
    """An answer that is made and sent at once."""
    more = [(b"connection", b"close")] if scope["path"] == "/close" else []
    headers = [(b"content-length", b"%d" % LARGE), *more]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(LARGE)})


@pytest.mark.parametrize("path", [b"/", b"/close"])
def test_an_answer_that_is_not_read_is_cut_and_one_that_is_comes_whole(
    path: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "ANSWER_SECONDS", WAIT)
    asked = WHOLE.replace(b"/healthz", path)
    with served(large) as server, contextlib.ExitStack() as stack:
        port = port_of(server)
        silent = [stack.enter_context(connect(port)) for _ in range(MOST)]
        for client in silent:
            client.sendall(asked)
        began, found = time.monotonic(), 0
        while (
            found <= LARGE and time.monotonic() - began < 20
        ):  # refused while they have all places
            with connect(port) as client:
                client.sendall(asked)
                found = length(client, LARGE)
        assert found > LARGE
        while server.server_state.connections:  # until the last of them is cut
            assert time.monotonic() - began < 40
            time.sleep(0.05)
        for client in silent:
            assert length(client) < LARGE


def length(client: socket.socket, wanted: int = 1 << 62) -> int:
    """Bytes until the end, or those wanted and the head before them."""
    found = 0
    with contextlib.suppress(ConnectionError):
        while found <= wanted and (part := client.recv(1 << 20)):
            found += len(part)
    return found


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def answer(client: socket.socket) -> bytes:
    """One answer to WHOLE, or what came before the end."""
    found = b""
    while not found.endswith(b"}") and (part := client.recv(1 << 16)):
        found += part
    return found


@pytest.mark.parametrize("begun", [b"", b"G", WHOLE[:-2], WHOLE + WHOLE[:-2]])
def test_a_request_that_does_not_end_is_not_waited_for(port: int, begun: bytes) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(port)) for _ in range(MOST)]
        for client in silent:
            client.sendall(begun)
        for client in silent:
            while client.recv(1 << 16):
                pass  # the server ends it: else this waits for 20 s, and fails
        with connect(port) as client:
            client.sendall(WHOLE)
            assert answer(client).startswith(b"HTTP/1.1 200")


def test_bytes_that_trickle_buy_no_more_time(port: int) -> None:
    with connect(port) as client:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for number in range(1000):
                client.sendall(WHOLE[:-2] if not number else b"X: y\r\n")
                if not _is_open(client):
                    break
        assert time.monotonic() - began < 20 * WAIT


def _is_open(client: socket.socket) -> bool:
    client.settimeout(WAIT / 10)
    try:
        return bool(client.recv(1))
    except TimeoutError:
        return True


def test_a_connection_serves_many_requests_one_after_another(port: int) -> None:
    """Longer than a single one may take to come."""
    with connect(port) as client:
        began = time.monotonic()
        count = 0
        while time.monotonic() - began < 3 * WAIT:
            client.sendall(WHOLE[:20])
            client.sendall(WHOLE[20:])
            assert answer(client).startswith(b"HTTP/1.1 200")
            count += 1
        assert count > 1
