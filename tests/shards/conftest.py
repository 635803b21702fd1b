"""Stores, small datasets and a faulty S3 server for the tests of the token store."""

from __future__ import annotations

import http.client
import logging
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import xxhash

from services.shards import codec, layout
from services.shards.manifest import put_asset
from services.shards.retry import RetryPolicy
from services.shards.store import Store, open_store
from services.types import TokenRows
from services.wire.seit import v1 as wire

SPEC = wire.TokenSpec(
    grid_height=4, grid_width=6, codes=391, channels=8, image_height=32, image_width=48
)
FAST = RetryPolicy(attempts=6, base_seconds=0.001, cap_seconds=0.002)


@pytest.fixture
def spec() -> wire.TokenSpec:
    return SPEC


@pytest.fixture
def make_rows() -> Callable[[int, int], TokenRows]:
    """(number of rows, seed) -> rows."""

    def make(count: int, seed: int) -> TokenRows:
        rng = np.random.default_rng(seed)
        return TokenRows(
            ids=rng.integers(0, 391, (count, 4, 6)).astype(np.uint16),
            labels=rng.integers(-1, 3, count),
            keys=[f"{seed}/ü{row}.jpg" for row in range(count)],
            source_bytes=rng.integers(0, 10_000, count),
        )

    return make


@pytest.fixture
def put_shard() -> Callable[[Store, TokenRows], wire.Shard]:
    """Write rows as a shard of dataset "ds" below the store."""

    def put(root: Store, rows: TokenRows) -> wire.Shard:
        data = layout.to_parquet(rows, SPEC)
        digest = xxhash.xxh3_128_hexdigest(data)
        path = f"shards/train-{digest[:16]}.parquet"
        root.child("ds").write(path, data)
        labels, counts = np.unique(rows.labels, return_counts=True)
        return wire.Shard(
            path=path,
            rows=len(rows),
            bytes=len(data),
            xxh3=digest,
            source_bytes=int(rows.source_bytes.sum()),
            labels=wire.LabelCounts(labels=labels.tolist(), rows=counts.tolist()),
        )

    return put


@pytest.fixture
def make_manifest(
    put_shard: Callable[[Store, TokenRows], wire.Shard],
) -> Callable[[Store, list[TokenRows]], wire.Manifest]:
    """Write one shard for each block of rows; the manifest of them, not yet committed."""

    def make(root: Store, blocks: list[TokenRows]) -> wire.Manifest:
        counts = sum((codec.count_codes(rows.ids, 391) for rows in blocks), np.zeros(391, int))
        return wire.Manifest(
            dataset="ds",
            spec=SPEC,
            tokenizer_kind="release",
            classes=["ant", "bee", "cat"],
            assets=[put_asset(root, "ds", "codebook", b"weights")],
            splits=[
                wire.Split(
                    name="train",
                    shards=[put_shard(root, rows) for rows in blocks],
                    code_counts=counts.tolist(),
                )
            ],
        )

    return make


_CODES = {403: "AccessDenied", 500: "InternalError", 501: "NotImplemented", 503: "SlowDown"}


class FaultyS3:
    """A proxy before an S3 server that spoils answers on a schedule.

    faults: what happens to the next requests, first to last: an HTTP status, "reset" (the server
    acts, the answer is lost), "truncate", "flip" (of the body) or "forge" (the same, without
    the checksum that would give it away); None lets one pass.
    lenient: drop `If-None-Match`, as a server does that knows no conditional writes.
    """

    def __init__(self, host: str, port: int) -> None:
        self.faults: list[int | str | None] = []
        self.lenient = False
        self.requests = 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                proxy.requests += 1
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy.faults.pop(0) if proxy.faults else None
                if isinstance(fault, int):
                    code = _CODES[fault]
                    text = f"<Error><Code>{code}</Code><Message>injected</Message></Error>"
                    self.reply(fault, [], text.encode())
                    return
                headers = dict(self.headers.items())
                if proxy.lenient:
                    headers = {k: v for k, v in headers.items() if k.lower() != "if-none-match"}
                back = http.client.HTTPConnection(host, port, timeout=10)
                back.request(self.command, self.path, body, headers)
                found = back.getresponse()
                data = found.read()
                if fault == "reset":
                    self.close_connection = True
                    return
                answers = found.getheaders()
                if fault in ("flip", "forge"):
                    data = bytes([data[0] ^ 1]) + data[1:]
                if fault == "forge":
                    answers = [pair for pair in answers if "checksum" not in pair[0].lower()]
                self.reply(found.status, answers, data, cut=fault == "truncate")
                back.close()

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
                self.close_connection = cut

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing: the tests count requests instead."""

        for verb in ("GET", "PUT", "HEAD", "DELETE", "POST"):
            setattr(Handler, f"do_{verb}", Handler.answer)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="session")
def moto_address() -> Iterator[tuple[str, int]]:
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield host, port
    server.stop()


@pytest.fixture
def faulty_s3(moto_address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """The proxy before moto's server, with credentials for it in the environment."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    proxy = FaultyS3(*moto_address)
    yield proxy
    proxy.close()


@pytest.fixture
def s3_store(faulty_s3: FaultyS3) -> Store:
    """An empty bucket of its own behind the proxy, with short pauses between retries."""
    bucket = f"test-{uuid.uuid4().hex}"
    connection = http.client.HTTPConnection(faulty_s3.url.removeprefix("http://"), timeout=10)
    connection.request("PUT", f"/{bucket}")
    assert connection.getresponse().status == 200
    connection.close()
    faulty_s3.requests = 0
    return open_store(f"s3://{bucket}/some/prefix", retry=FAST, endpoint_url=faulty_s3.url)


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store, once of each kind."""
    if request.param == "local":
        return open_store(str(tmp_path / "root"))
    if request.param == "memory":
        return open_store(f"memory://{uuid.uuid4().hex}")
    kept: Store = request.getfixturevalue("s3_store")
    return kept


@pytest.fixture
def root(tmp_path: Path) -> Store:
    """An empty folder of the file system."""
    return open_store(str(tmp_path / "root"))
