"""The Grafana dashboard and the alert rules ask for series that /metrics has, by labels it has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from services.settings import load_settings
from services.shards.store import Store
from services.stats import metrics
from services.stats.app import create_app
from services.stats.cluster import REACHABLE, View
from services.stats.streams import open_runs
from services.wire.seit import v1 as wire
from tests.small_datasets import write_dataset
from tests.small_runs import write_run

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARD, ALERTS = DEPLOY / "grafana/seit.json", DEPLOY / "prometheus/seit-alerts.yml"
SERIES = re.compile(r"\b(seit_[a-z_]+)")
BY = re.compile(r"\bby \(([a-z_, ]+)\)")


def queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    rules = ALERTS.read_text().replace(">-\n", "").replace("\n          /", " /")
    return found + re.findall(r"expr: +(.+)", rules)


@pytest.fixture
def series(root: Store, tmp_path: Path) -> dict[str, set[str]]:
    """Name of each exported series: its labels."""
    write_dataset(root)
    write_run(tmp_path / "runs/mtm", world=2)
    app = create_app(root, load_settings({}), open_runs([str(tmp_path / "runs")]))
    with TestClient(app) as client:
        client.get("/v1/datasets")
        text = client.get("/metrics").text
    found: dict[str, set[str]] = {}
    families = [*text_string_to_metric_families(text), *metrics._cluster_families(CLUSTER, UP)]
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


CLUSTER = View(wire.Cluster(state=REACHABLE)).cluster
UP = metrics.GaugeMetricFamily("seit_service_up", "", labels=("part",))


@pytest.mark.parametrize("query", queries())
def test_a_query_finds_its_series(series: dict[str, set[str]], query: str) -> None:
    names = SERIES.findall(query)
    assert names
    for name in names:
        assert name in series, f"{name} is not exported"
    labels = set.union(*(series[name] for name in names)) | {"job", "instance"}  # Prometheus' own
    grouped = {one.strip() for part in BY.findall(query) for one in part.split(",")}
    matched = set(re.findall(r"[{,]\s*([a-z]+)\s*[!=]~?", query))
    assert grouped | matched <= labels


def test_a_typing_error_would_be_seen(series: dict[str, set[str]]) -> None:
    assert "seit_stream_row_total" not in series


def unit(query: str) -> str:
    """Grafana's unit for the figure of a query; bytes count by thousands, as `seit` has them."""
    if " / " in query or re.search(r"rate\(\w+_seconds_total", query):  # of each second
        return "percentunit"
    if "_seconds" in query:
        return "s"
    if query.rstrip(")").endswith("_bytes"):
        return "decbytes"
    return "reqps" if "rate(seit_service_requests" in query else "short"


def test_figures_are_shown_in_their_units() -> None:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            assert panel["fieldConfig"]["defaults"]["unit"] == unit(target["expr"]), panel["title"]
