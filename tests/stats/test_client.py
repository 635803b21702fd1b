"""The client, against a real server on a free port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from services.errors import FormatError, InvalidInputError, NotFoundError, StoreError
from services.settings import load_settings
from services.shards.store import Store
from services.stats.app import create_app
from services.stats.client import StatsClient
from services.stats.report import storage_report, summarize
from tests.small_datasets import write_dataset


@pytest.fixture
def client(root: Store) -> Iterator[StatsClient]:
    app = create_app(root, load_settings({"SEIT_STATS_FRESH_SECONDS": "0"}))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield StatsClient(f"http://127.0.0.1:{port}/")
    server.should_exit = True
    thread.join()


def test_everything_comes_typed_and_whole(client: StatsClient, root: Store) -> None:
    first = write_dataset(root, shards=1).manifest
    second = write_dataset(root, shards=120, rows=1, seed=1).manifest
    assert list(client.datasets()) == [summarize(second)]
    assert client.dataset("digits") == summarize(second)
    assert list(client.versions("digits")) == [summarize(second), summarize(first)]
    assert client.storage("digits").splits == storage_report(second).splits
    assert [info.shard for info in client.shards("digits", "train")] == second.splits[0].shards
    assert len(list(client.shards("digits"))) == 121  # more than one page


def test_refusals_are_the_service_s_own(client: StatsClient, root: Store) -> None:
    write_dataset(root, "bad")
    root.write("bad/versions/00000001.json", b"no manifest")
    with pytest.raises(NotFoundError, match="no dataset 'none'"):
        client.dataset("none")
    with pytest.raises(NotFoundError, match="no split"):
        list(client.shards("bad2", "test")) if write_dataset(root, "bad2") else None
    with pytest.raises(FormatError, match="not whole JSON"):
        client.storage("bad")
    with pytest.raises(InvalidInputError, match="not valid"):
        client.dataset("../etc")


def test_an_address_where_nothing_answers() -> None:
    with pytest.raises(StoreError, match="does not answer"):
        StatsClient("http://127.0.0.1:9", timeout_seconds=2).dataset("digits")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "127.0.0.1:8000", "", "ftp://host"])
def test_only_http_is_asked(url: str) -> None:
    with pytest.raises(InvalidInputError, match="http://HOST:PORT"):
        StatsClient(url)
