"""`ray job stop`: a checkpoint, a clean end, and the same job goes on. Short form: test_demo."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.system.clusters import Cluster
from tests.system.conftest import ROOT
from tests.system.test_job import tiny_dataset
from trainers.checkpoint import checkpoint_steps

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]

PATIENCE = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}}  # else Ray kills after 3 s


def ray_job(head: Cluster, *words: str) -> str:
    ended = subprocess.run(
        ["ray", "job", words[0], "--address", head.dashboard, *words[1:]],
        env=head.environment,
        cwd=head.scratch,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    return ended.stdout


def test_a_stopped_job_leaves_a_checkpoint_and_goes_on(head: Cluster, tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "data")
    out = tmp_path / "run"
    metrics = out / "metrics.jsonl"
    submit = (
        *("submit", "--no-wait", "--working-dir", str(ROOT)),
        *("--runtime-env-json", json.dumps(PATIENCE)),
    )
    program = (
        *("--", "python", "trainers/mtm.py", "--recipe", "mtm-tiny", "--out", str(out)),
        *("--data.root", str(tmp_path / "data"), "--data.dataset", "tiny"),
        *("--loop.epochs", "100000", "--loop.checkpoint-every", "1000000", "--loop.log-every", "1"),
        *("--optim.warmup-epochs", "0", "--loop.validate-every", "100000"),
    )
    for name in ("first", "second"):
        before = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        ray_job(head, *submit, "--submission-id", name, *program)
        limit = time.monotonic() + 240
        while not metrics.exists() or len(metrics.read_text().splitlines()) <= before:
            assert time.monotonic() < limit, ray_job(head, "logs", name)[-4000:]
            time.sleep(0.2)
        ray_job(head, "stop", name)
        assert "was stopped" in ray_job(head, "status", name)
        said = ray_job(head, "logs", name)
        assert "SIGTERM: saving a checkpoint and ending" in said
        recorded = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
        assert checkpoint_steps(str(out))[-1] == recorded[-1]  # not a step is lost
        assert recorded == list(range(1, recorded[-1] + 1))
