"""The client, against a real server on a free port."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import FormatError, InvalidInputError, NotFoundError, StoreError
from services.settings import load_settings
from services.shards.store import Store
from services.stats.access import new_token
from services.stats.app import create_app
from services.stats.client import StatsClient
from services.stats.report import storage_report, summarize
from tests.seit_command import Seit
from tests.small_datasets import write_dataset


@contextlib.contextmanager
def served(root: Store, environment: Mapping[str, str]) -> Iterator[str]:
    """Address of a real server."""
    app = create_app(root, load_settings({"SEIT_STATS_FRESH_SECONDS": "0", **environment}))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def client(root: Store) -> Iterator[StatsClient]:
    with served(root, {}) as url:
        yield StatsClient(url)


def test_everything_comes_typed_and_whole(client: StatsClient, root: Store) -> None:
    first = write_dataset(root, shards=1).manifest
    second = write_dataset(root, shards=120, rows=1, seed=1).manifest
    assert list(client.datasets()) == [summarize(second)]
    assert client.dataset("digits") == summarize(second)
    assert list(client.versions("digits")) == [summarize(second), summarize(first)]
    assert client.storage("digits").splits == storage_report(second).splits
    assert [info.shard for info in client.shards("digits", "train")] == second.splits[0].shards
    assert len(list(client.shards("digits"))) == 121  # more than one page


def test_where_nothing_stands_that_is_said_and_what_would_be_there(
    root: Store, tmp_path: Path, seit: Seit
) -> None:
    (tmp_path / "runs/not one").mkdir(parents=True)
    runs = str(tmp_path / "runs")
    with served(root, {"SEIT_STATS_RUNS": runs}) as url:
        said = {
            f"No dataset stands at {url}: `seit ingest`": ("stats", url),
            f"No run has a stream at {url}: `seit serve`": ("streams", url),
            f"No run stands at {runs}, or in a folder directly below: a run is": ("streams", runs),
            f"No run at {runs} is failed; without --state": ("streams", runs, "--state", "failed"),
        }
        for words, command in said.items():
            shown = seit(*command)
            assert (shown.code, shown.err) == (0, "")
            assert shown.out.startswith(words)
            assert shown.out.count("\n") == 1  # and no empty table


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


@pytest.mark.parametrize("host", ["127.0.0.1:9", "a..b", "a" * 64])
def test_an_address_where_nothing_answers(host: str) -> None:
    with pytest.raises(StoreError, match="does not answer"):
        StatsClient(f"http://{host}", timeout_seconds=2).dataset("digits")


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "127.0.0.1:8000", "", "ftp://host", "http://", "http://:80"),
        *("http://[::1", "http://[x]", "http://host:port", "http://host:99999", "http://host:0"),
        *("http://a b", "http://host/\n", "http://h\u00f6st", "http://host/\ud800"),
    ],
)
def test_only_http_is_asked(url: str) -> None:
    with pytest.raises(InvalidInputError, match="http://HOST:PORT"):
        StatsClient(url)


@pytest.mark.parametrize("url", ["http://[::1]:8000", "https://host.example/under/", "http://h:1"])
def test_addresses_are_not_refused(url: str) -> None:
    StatsClient(url)


@settings(max_examples=300)
@given(st.text(max_size=20).map("http://".__add__) | st.text(max_size=20))
def test_any_text_is_an_address_or_refused(url: str) -> None:
    with contextlib.suppress(InvalidInputError):
        StatsClient(url)


@pytest.fixture
def locked(root: Store, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Address of a service that asks for a token, and one that it knows."""
    token = new_token(tmp_path / "tokens", "a", ["read"])
    with served(root, {"SEIT_STATS_TOKENS": str(tmp_path / "tokens")}) as url:
        yield url, token


@pytest.mark.parametrize("around", ["", "\n", "\r\n", " \t"])
def test_what_a_file_left_around_a_token_is_no_part_of_it(
    locked: tuple[str, str], around: str, seit: Seit, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, token = locked
    monkeypatch.setenv("SEIT_STATS_TOKEN", token + around)
    ended = seit("stats", url)
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.parametrize("token", ["two words", "two\nlines", "t\u00f6ken", "a\x00b", "\udcff"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(
    token: str, seit: Seit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", {**os.environ, "SEIT_STATS_TOKEN": token})
    ended = seit("stats", "http://127.0.0.1:9")
    assert (ended.code, "SEIT_STATS_TOKEN" in ended.err) == (2, True)
    assert token not in ended.err


def test_an_address_that_is_none_ends_with_2(seit: Seit) -> None:
    ended = seit("stats", "http://[::1")
    assert (ended.code, "http://HOST:PORT" in ended.err) == (2, True)
