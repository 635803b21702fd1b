"""Whatever stands where the Ray dashboard should: its answers are no errors of this service."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from fastapi.testclient import TestClient

from services.settings import load_settings
from services.shards.store import Store
from services.stats.app import create_app
from tests.small_datasets import write_dataset

OK = b"HTTP/1.1 200 OK\r\n"
DEEP = b"[" * 100_000


@contextmanager
def speaking(said: Callable[[bytes], bytes]) -> Iterator[str]:
    """URL of a server that says this to a request, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    if asked := connection.recv(1 << 16):
                        connection.sendall(said(asked))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    "said",
    [
        b"\x00\x00\x18\x04\x00\x00\x00\x00\x00\r\n\r\n",  # a port of Ray's that speaks gRPC
        OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n",  # it ended at its answer
        OK + b"content-length: 100\r\n\r\n{}",
        OK + b"a: b\r\n" * 200 + b"\r\n{}",
        OK + b"content-length: %d\r\n\r\n%b" % (len(DEEP), DEEP),
        OK + b"content-length: 2\r\n\r\n[]",
        b"",
    ],
    ids=["another protocol", "cut chunk", "cut body", "headers", "deep", "list", "silent"],
)
def test_whatever_answers_as_the_dashboard_is_at_worst_unreachable(
    root: Store, said: bytes
) -> None:
    write_dataset(root)
    with speaking(lambda _: said) as url:
        app = create_app(root, load_settings({"SEIT_STATS_RAY": url}), [])
        with TestClient(app, raise_server_exceptions=False) as client:
            for path in ("/readyz", "/v1/streams", "/v1/datasets", "/metrics"):
                assert client.get(path).status_code == 200
            cluster = client.get("/v1/jobs").json()["cluster"]
    assert cluster["state"] == "unreachable"
    assert cluster["reason"]


def test_a_time_beyond_all_numbers_makes_it_unreachable(root: Store) -> None:
    def said(asked: bytes) -> bytes:
        late = b'[{"submission_id": "a", "start_time": 1%b}]' % (b"0" * 400)
        body = late if b"/api/jobs/" in asked else b'{"data": {"result": {"result": []}}}'
        return OK + b"content-length: %d\r\n\r\n%b" % (len(body), body)

    with speaking(said) as url:
        app = create_app(root, load_settings({"SEIT_STATS_RAY": url}), [])
        with TestClient(app, raise_server_exceptions=False) as client:
            assert client.get("/v1/jobs").json()["cluster"]["state"] == "unreachable"
