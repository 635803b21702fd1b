"""What two replicas of the stats service tell is, to the dashboard and the alerts, what one tells.

Promtool evaluates every query twice over the figures of real services: as it stands, over both
replicas, and with each selector kept to one of them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from services.settings import load_settings
from services.shards.store import open_store
from services.stats.app import create_app
from services.stats.streams import open_runs
from services.stream.account import Account
from tests.deploy.loopback import served
from tests.deploy.test_alerts import ROOT, rules, told_by
from tests.small_datasets import write_dataset
from tests.small_runs import write_run

REPLICAS = ("a:8000", "b:8000")
_GROWING = ("_total", "_bucket", "_count", "_sum")
_NODES = {"data": {"result": {"result": [{"state": "ALIVE"}, {"state": "DEAD"}]}}}
_ACTORS = {"data": {"result": {"result": [{"state": "ALIVE", "job_id": "1"}]}}}


def queries() -> dict[str, str]:
    """By the place where each stands: what is asked of what stands and flows, without thresholds.

    A replica's own requests are its own, and so is whether it answers: there two replicas do tell
    more than one.
    """
    found = {
        f"{panel['title']} {number}": target["expr"].replace("$run", ".*")
        for panel in json.loads((ROOT / "deploy/grafana/seit.json").read_text())["panels"]
        for number, target in enumerate(panel["targets"])
    }
    for rule in rules():
        found[rule["alert"]] = re.sub(r"\s*(==|>|<)\s*[\d.]+$", "", rule["expr"].strip())
    return {
        place: re.sub(r'\bstate="\w+"', 'state=~".+"', expr)  # no run here is in trouble
        for place, expr in found.items()
        if "seit_service_request" not in expr and not expr.startswith(("absent(", "up{"))
    }


def of_one(expr: str) -> str:
    """The query, with every selector kept to the first replica."""
    narrowed = re.sub(r"\b(seit_\w+)(?:\{([^}]*)\})?", r'\1{instance="a:8000",\2}', expr)
    return narrowed.replace(",}", "}")


@pytest.fixture
def told(tmp_path: Path) -> list[dict[str, str]]:
    """Series of two replicas over the same root and runs; counters grow by what they showed."""
    root, runs = open_store(str(tmp_path / "data")), tmp_path / "runs"
    runs.mkdir()
    for name in ("digits", "letters"):
        write_dataset(root, name)
    for name in ("mtm", "classify"):
        account = Account(bytes_fetched=10, bytes_hit=30, retries=2, lost=("a",))
        write_run(runs / name, world=2, account=account)
    series = []
    answers = {"/api/v0/nodes": _NODES, "/api/v0/actors": _ACTORS, "/api/jobs/": []}
    with served(answers) as ray:
        for replica in REPLICAS:
            settings = load_settings({"SEIT_STATS_RAY": ray.url})
            with TestClient(create_app(root, settings, open_runs([str(runs)]))) as client:
                client.get("/v1/jobs")
                text = client.get("/metrics").text
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    labels = {**sample.labels, "instance": replica, "job": "seit"}
                    inner = ", ".join(f"{name}={json.dumps(v)}" for name, v in labels.items())
                    grows = sample.name.endswith(_GROWING)
                    # How long a rank is silent is another figure at each look.
                    value = 7 if sample.name.endswith("silent_seconds") else sample.value
                    values = f"0+{value + 1}x90" if grows else f"{value}x90"
                    series.append({"series": f"{sample.name}{{{inner}}}", "values": values})
    return series


def test_two_replicas_tell_what_one_tells(told: list[dict[str, str]], tmp_path: Path) -> None:
    checks: list[dict[str, Any]] = []
    for expr in queries().values():
        both, one = f"({expr})", f"({of_one(expr)})"
        for question, answer in (
            (f"count({one}) > bool 0", 1),  # else it would prove nothing
            (f"count({both}) - count({one})", 0),
            (f"count({one}) - count(abs({both} - {one}) < 1e-9)", 0),
        ):
            samples = [{"labels": "{}", "value": answer}]
            checks.append({"expr": question, "eval_time": "14m", "exp_samples": samples})
    scene = {"interval": "10s", "input_series": told, "promql_expr_test": checks}
    file = tmp_path / "scenes.yml"
    file.write_text(yaml.safe_dump({"tests": [scene]}))
    assert len(checks) >= 3 * 20
    told_by(file)
