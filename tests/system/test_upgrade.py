"""The rolling upgrade of docs/deploy.md: a run stopped on one cluster goes on on another, which is
there beside it; steps and losses are those of a run that nobody stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from services.stats.streams import listed, open_runs
from tests.system.clusters import Cluster, cluster
from tests.system.conftest import ROOT, bare_environment, wait_for_agent
from tests.system.test_job import tiny_dataset
from tests.system.test_stop import PATIENCE, ray_job
from tests.until import until
from trainers.checkpoint import checkpoint_steps

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]

EPOCHS, STEPS = 300, 600


@pytest.fixture
def clusters(tmp_path: Path) -> Iterator[tuple[Cluster, Cluster]]:
    """The old one and the new one, each with a head and a Python of its own."""
    with ExitStack() as stack:
        made = []
        for name in ("old", "new"):
            folder = tmp_path / name
            environment = bare_environment(folder / "venv")
            options = ("--include-dashboard", "true")
            made.append(stack.enter_context(cluster(folder, environment, 2, name, *options)))
            wait_for_agent(made[-1], folder)
        yield made[0], made[1]


def program(data: Path, out: Path) -> tuple[str, ...]:
    return (
        *("--recipe", "mtm-tiny", "--data.root", str(data), "--data.dataset", "tiny"),
        *("--out", str(out), "--loop.epochs", str(EPOCHS), "--loop.log-every", "1"),
        *("--optim.warmup-epochs", "0", "--loop.validate-every", str(EPOCHS)),
        *("--loop.checkpoint-every", "1000000"),
    )


def recorded(out: Path) -> list[dict[str, Any]]:
    file = out / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith("\n")]
    return [entry for entry in entries if "grad_norm" in entry]


def test_a_run_goes_on_on_a_new_cluster_as_if_nothing_had_been(
    clusters: tuple[Cluster, Cluster], tmp_path: Path
) -> None:
    old, new = clusters
    tiny_dataset(tmp_path / "data")
    out, whole = tmp_path / "runs" / "upgraded", tmp_path / "runs" / "whole"
    command = ("python", "trainers/mtm.py", *program(tmp_path / "data", out))
    submit = ("submit", "--working-dir", str(ROOT), "--runtime-env-json", json.dumps(PATIENCE))
    ray_job(old, *submit, "--no-wait", "--submission-id", "before", "--", *command)
    until(lambda: len(recorded(out)) > 20, "step", seconds=240)
    ray_job(old, "stop", "before")
    stopped_at = recorded(out)[-1]["step"]
    assert 20 < stopped_at < STEPS
    assert checkpoint_steps(str(out))[-1] == stopped_at
    (stream,) = listed(open_runs([str(tmp_path / "runs")]))
    assert stream.state == "stopped"

    ray_job(new, *submit, "--submission-id", "after", "--", *command)
    alone = [sys.executable, ROOT / "trainers/mtm.py", *program(tmp_path / "data", whole)]
    subprocess.run([*alone, "--cluster.no-ray"], check=True, capture_output=True, timeout=240)
    steps = recorded(out)
    assert [entry["step"] for entry in steps] == list(range(1, STEPS + 1))
    assert [entry["loss"] for entry in steps] == [entry["loss"] for entry in recorded(whole)]
