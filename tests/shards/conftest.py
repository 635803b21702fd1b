"""Stores and small datasets for the tests of the token store."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import xxhash

from services.shards import codec, layout
from services.shards.cache import ShardCache
from services.shards.manifest import put_asset
from services.shards.retry import RetryPolicy
from services.shards.store import Store, open_store
from services.types import TokenRows
from services.wire.seit import v1 as wire
from tests.shards.faulty_s3 import FaultyS3
from tests.shards.gcs_server import BUCKET, gcs_server
from tests.shards.swift_server import KEY, SECRET, swift_server

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


@dataclass(frozen=True)
class S3Server:
    """An S3 server of this session. checks: it compares what arrives with what was signed."""

    host: str
    port: int
    key: str
    secret: str
    checks: bool


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """moto's server, or Swift's where the environment names its Python (swift_server.py)."""
    python = os.environ.get("SEIT_TEST_SWIFT")
    if python:
        with swift_server(python, tmp_path_factory.mktemp("swift")) as (host, port):
            yield S3Server(host, port, KEY, SECRET, checks=True)
        return
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield S3Server(*server.get_host_and_port(), "test", "test", checks=False)
    server.stop()


@pytest.fixture
def faulty_s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """The proxy before the S3 server, with credentials for it in the environment."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": s3_server.key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    proxy = FaultyS3(s3_server.host, s3_server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def s3_bucket(faulty_s3: FaultyS3) -> str:
    """A new bucket, made through the proxy."""
    bucket = f"test-{uuid.uuid4().hex}"
    fsspec.filesystem("s3", endpoint_url=faulty_s3.url, skip_instance_cache=True).mkdir(bucket)
    faulty_s3.requests = 0
    return bucket


@pytest.fixture
def s3_store(faulty_s3: FaultyS3, s3_bucket: str) -> Store:
    """An empty bucket of its own behind the proxy, with short pauses between retries."""
    return open_store(f"s3://{s3_bucket}/some/prefix", retry=FAST, endpoint_url=faulty_s3.url)


@pytest.fixture(scope="session")
def gcs_address() -> Iterator[tuple[str, int]]:
    """Host and port of this session's server of Google Cloud Storage's API."""
    with gcs_server() as address:
        yield address


@pytest.fixture
def faulty_gcs(gcs_address: tuple[str, int]) -> Iterator[FaultyS3]:
    """The proxy before it."""
    proxy = FaultyS3(*gcs_address)
    yield proxy
    proxy.close()


@pytest.fixture
def gcs_store(faulty_gcs: FaultyS3) -> Store:
    """An empty prefix behind the proxy, with short pauses between retries."""
    url = f"gs://{BUCKET}/{uuid.uuid4().hex}"
    return open_store(url, retry=FAST, endpoint_url=faulty_gcs.url, token="anon", project="p")


@pytest.fixture(params=["local", "memory", "s3", "gs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store, once of each kind."""
    if request.param == "local":
        return open_store(str(tmp_path / "root"))
    if request.param == "memory":
        return open_store(f"memory://{uuid.uuid4().hex}")
    kept: Store = request.getfixturevalue("s3_store" if request.param == "s3" else "gcs_store")
    return kept


@pytest.fixture
def root(tmp_path: Path) -> Store:
    """An empty folder of the file system."""
    return open_store(str(tmp_path / "root"))


@pytest.fixture
def written(
    root: Store, tmp_path: Path, spec: wire.TokenSpec, make_rows: Any, put_shard: Any
) -> Callable[[int], tuple[list[TokenRows], list[wire.Shard], int]]:
    """Makes so many shards of 40 rows: the rows, the shards, and the bytes of an entry."""

    def write(count: int) -> tuple[list[TokenRows], list[wire.Shard], int]:
        blocks = [make_rows(40, seed) for seed in range(count)]
        shards = [put_shard(root, rows) for rows in blocks]
        one = ShardCache(tmp_path / "one", 1 << 30).rows(root, "ds", shards[0], spec)
        return blocks, shards, one.file_bytes

    return write
