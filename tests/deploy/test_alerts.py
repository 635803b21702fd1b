"""The alert rules and the dashboard's arithmetic, evaluated by Prometheus' own promtool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCENES = HERE / "alerts.yml"


def told_by(scenes: Path) -> str:
    """What promtool says of unit tests for rules and queries; an AssertionError where they fail."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool: `apt-get install prometheus` lets rules be evaluated")
    words = [promtool, "test", "rules", str(scenes)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules() -> list[dict[str, Any]]:
    loaded = yaml.safe_load((ROOT / "deploy/prometheus/seit-alerts.yml").read_text())
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def test_alerts_fire_when_they_should_and_then_alone() -> None:
    assert "SUCCESS" in told_by(SCENES)


def test_each_alert_is_seen_to_fire_and_to_be_silent() -> None:
    looks = [
        one
        for scene in yaml.safe_load(SCENES.read_text())["tests"]
        for one in scene["alert_rule_test"]
    ]
    names = {rule["alert"] for rule in rules()}
    assert {one["alertname"] for one in looks if one.get("exp_alerts")} == names
    assert {one["alertname"] for one in looks if not one.get("exp_alerts")} == names


def test_replicas_are_looked_for_in_the_job_that_scrapes_them() -> None:
    config = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text())
    (job,) = (
        one["job_name"]
        for one in config["scrape_configs"]
        if {"targets": ["api:8000"]} in one.get("static_configs", [])
    )
    assert {name for rule in rules() for name in re.findall(r'job="(\w+)"', rule["expr"])} == {job}


def test_the_page_says_what_to_do_about_each() -> None:
    table = re.findall(r"^\| (Seit\w+) \| .", (ROOT / "docs/stats.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted(rule["alert"] for rule in rules())


def panel(title: str) -> dict[str, Any]:
    panels = json.loads((ROOT / "deploy/grafana/seit.json").read_text())["panels"]
    (found,) = (one for one in panels if one["title"] == title)
    return dict(found)


def test_pictures_of_unknown_size_are_not_held_against_pixels(tmp_path: Path) -> None:
    (target,) = panel("Storage against pixels")["targets"]
    series = {
        'seit_dataset_bytes{dataset="photos"}': "250",
        'seit_dataset_pixel_bytes{dataset="photos"}': "1000",
        'seit_dataset_bytes{dataset="unknown"}': "500",
        'seit_dataset_pixel_bytes{dataset="unknown"}': "0",
    }
    expected = {"labels": "{}", "value": 0.25}
    scene = {
        "input_series": [{"series": name, "values": value} for name, value in series.items()],
        "promql_expr_test": [
            {"expr": target["expr"], "eval_time": "0s", "exp_samples": [expected]}
        ],
    }
    file = tmp_path / "scenes.yml"
    file.write_text(yaml.safe_dump({"tests": [scene]}))
    told_by(file)
