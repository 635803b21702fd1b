"""A storage that is out for a while, stalls, or sends a damaged shard: no batch changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from s3fs import S3FileSystem

from services.shards.store import open_store
from services.stream.loader import Stream
from services.stream.request import StreamRequest
from tests.shards.conftest import faulty_s3, s3_bucket, s3_server  # noqa: F401 - fixtures
from tests.shards.faulty_s3 import Fault, FaultyS3
from tests.stream.test_loader import same

pytestmark = pytest.mark.timeout(180)

OUTAGES = [2.0, pytest.param(20.0, marks=pytest.mark.slow)]


class Spell:
    """From the first request for a shard on, everything is answered by `fault` for some seconds."""

    def __init__(self, seconds: float, fault: Callable[[float], Fault | None]) -> None:
        self._seconds, self._fault = seconds, fault
        self._end: float | None = None

    def choose(self, verb: str, path: str) -> Fault | None:
        if self._end is None and ".parquet" in path:
            self._end = time.monotonic() + self._seconds
        left = (self._end or 0.0) - time.monotonic()
        return self._fault(left) if left > 0 else None


@pytest.fixture
def on_s3(
    world: Any,
    faulty_s3: FaultyS3,  # noqa: F811
    s3_bucket: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> StreamRequest:
    """The small dataset behind the proxy, and an empty cache."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", faulty_s3.url)
    S3FileSystem.clear_instance_cache()  # it would remember another test's proxy
    files = fsspec.filesystem("s3", endpoint_url=faulty_s3.url, skip_instance_cache=True)
    files.put(str(world.root), f"{s3_bucket}/data", recursive=True)
    request: StreamRequest = world.request("eval")
    source = replace(request.rows.sources[0], root=open_store(f"s3://{s3_bucket}/data").url)
    return replace(
        request, rows=replace(request.rows, sources=(source,), cache_dir=str(tmp_path / "cache"))
    )


@pytest.mark.parametrize("seconds", OUTAGES)
def test_an_outage_is_waited_out(
    world: Any,
    on_s3: StreamRequest,
    faulty_s3: FaultyS3,  # noqa: F811
    seconds: float,
) -> None:
    expected = list(Stream(world.request("eval"), stop=9))
    stream = Stream(on_s3, stop=9)
    faulty_s3.chaos = Spell(seconds, lambda left: 503)  # type: ignore[assignment]
    began = time.monotonic()
    found = list(stream)
    assert time.monotonic() - began >= seconds
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    assert stream.flow().retries > 0


@pytest.mark.parametrize("seconds", OUTAGES)
def test_a_stall_is_waited_out(
    world: Any,
    on_s3: StreamRequest,
    faulty_s3: FaultyS3,  # noqa: F811
    seconds: float,
) -> None:
    def wait(left: float) -> None:
        faulty_s3.closing.wait(left)

    expected = list(Stream(world.request("eval"), stop=9))
    stream = Stream(on_s3, stop=9)
    faulty_s3.chaos = Spell(seconds, wait)  # type: ignore[assignment]
    found = list(stream)
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_a_shard_that_arrives_damaged_once_is_fetched_again(
    world: Any,
    on_s3: StreamRequest,
    faulty_s3: FaultyS3,  # noqa: F811
) -> None:
    flipped: list[str] = []

    class FirstShard:
        def choose(self, verb: str, path: str) -> Fault | None:
            if ".parquet" not in path or verb != "GET" or flipped:
                return None
            flipped.append(path)
            return "forge"

    expected = list(Stream(world.request("eval"), stop=9))
    stream = Stream(on_s3, stop=9)
    faulty_s3.chaos = FirstShard()  # type: ignore[assignment]
    found = list(stream)
    assert flipped
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    assert stream.flow().refetches == 1
    assert stream.flow().quarantined == []
