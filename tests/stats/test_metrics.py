"""/metrics as Prometheus reads it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from services.settings import load_settings
from services.shards.store import Store
from services.stats.apart import Here
from services.stats.app import create_app
from services.stats.catalog import Catalog
from services.stats.cluster import RayCluster
from services.stats.metrics import ENDED_SECONDS, Metrics
from services.stats.streams import Streams, open_runs
from services.stream.account import Account
from services.stream.meter import COUNTERS, GAUGES
from services.wire.seit import v1 as wire
from tests.small_datasets import write_dataset
from tests.small_runs import write_run

NO_CLUSTER = RayCluster("", fresh_seconds=1)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def client(root: Store, runs: Path) -> Iterator[TestClient]:
    settings = load_settings({"SEIT_STATS_FRESH_SECONDS": "0"})
    with TestClient(create_app(root, settings, open_runs([str(runs)]))) as client:
        yield client


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_each_name_is_a_field_of_a_flow() -> None:
    fields = {field.name for field in dataclasses.fields(wire.Flow)}
    assert COUNTERS.keys() | GAUGES.keys() <= fields
    assert not COUNTERS.keys() & GAUGES.keys()


def test_streams_datasets_and_requests_are_counted(
    client: TestClient, root: Store, runs: Path
) -> None:
    write_dataset(root)
    write_run(runs / "mtm", world=2, account=Account(bytes_fetched=10, lost=("a",)))
    assert client.get("/v1/streams/mtm").status_code == 200
    assert client.get("/v1/streams/none").status_code == 404
    assert client.get("/v1/datasets/digits").status_code == 200
    assert client.get("/wp-login.php").status_code == 404
    assert client.head("/v1/datasets/digits").status_code == 200
    assert client.request("BREW", "/v1/datasets").status_code == 405
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(answer.text)
    rank = {"run": "mtm", "stream": "digits/train", "rank": "1"}
    assert found[key("seit_stream_rows_total", **rank)] == 32
    assert found[key("seit_stream_bytes_fetched_total", **rank)] == 40
    assert found[key("seit_stream_step", **rank)] == 4
    assert found[key("seit_stream_quarantined", run="mtm")] == 1
    assert 0 <= found[key("seit_stream_silent_seconds", **rank)] < 30
    assert found[key("seit_stream_state", run="mtm", state="running")] == 1
    assert found[key("seit_streams", state="running")] == 1
    assert found[key("seit_streams", state="failed")] == 0
    assert found[key("seit_dataset_rows", dataset="digits")] == 17
    assert found[key("seit_dataset_shards", dataset="digits")] == 4
    assert found[key("seit_dataset_bytes", dataset="digits")] > 0
    counted = "seit_service_requests_total"
    path = "/v1/streams/{run}"
    assert found[key(counted, method="GET", path=path, status="200")] == 1
    assert found[key(counted, method="GET", path=path, status="404")] == 1
    assert found[key(counted, method="GET", path="/v1/datasets/{name}", status="200")] == 1
    assert found[key(counted, method="HEAD", path="/v1/datasets/{name}", status="200")] == 1
    assert found[key(counted, method="GET", path="other", status="404")] == 1
    assert found[key(counted, method="other", path="/v1/datasets", status="405")] == 1
    assert found[key("seit_service_request_seconds_count", path=path)] == 2


def test_a_stream_that_ended_long_ago_leaves(root: Store, runs: Path) -> None:
    write_run(runs / "hangs")
    write_run(runs / "done", state="finished")
    catalog = Catalog(Here(root), fresh_seconds=0, shard_limit=10)
    streams = Streams(open_runs([str(runs)]), fresh_seconds=0, bytes_limit=10**6)
    assert 'run="done"' in Metrics(catalog, streams, NO_CLUSTER).text().decode()
    shown = (
        Metrics(catalog, streams, NO_CLUSTER, now=lambda: time.time() + ENDED_SECONDS)
        .text()
        .decode()
    )
    assert 'run="done"' not in shown
    assert 'run="hangs"' in shown
    assert 'seit_streams{state="finished"} 1.0' in shown


def test_foreign_text_stays_in_its_label(client: TestClient, runs: Path) -> None:
    write_run(runs / "mtm")
    path = runs / "mtm/streams/rank-0.json"
    path.write_text(path.read_text().replace("digits/train", 'a\\"b\\nfake_metric 1'))
    found = samples(client.get("/metrics").text)
    labels = {"run": "mtm", "stream": 'a"b\nfake_metric 1', "rank": "0"}
    assert found[key("seit_stream_rows_total", **labels)] == 32
    assert not any(name == "fake_metric" for name, _ in found)


def test_two_services_share_no_figures(client: TestClient, root: Store) -> None:
    client.get("/healthz")
    other = create_app(root, load_settings({}), [])
    with TestClient(other) as second:
        assert 'path="/healthz"' not in second.get("/metrics").text
