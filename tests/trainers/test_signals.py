"""A program that a signal asks to end: a checkpoint, exit code 130; the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.trainers.test_token_runs import SMALL, put

ROOT = Path(__file__).resolve().parents[2]
LONG = "200000"  # epochs: far more than the test waits for


def started(folder: Path, *, ray: bool = False) -> subprocess.Popen[str]:
    options = [word for word in SMALL if not (ray and word == "--cluster.no-ray")]
    command = [
        *(sys.executable, str(ROOT / "trainers" / "mtm.py"), *options, "--data.dataset", "big"),
        *("--data.root", str(folder / "data"), "--out", str(folder / "run")),
        *("--loop.checkpoint-every", "1000000", "--loop.epochs", LONG),
    ]
    cache = str(folder / "cache")
    environment = {**os.environ, "SEIT_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
    environment["RAY_ADDRESS"] = "local"
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def steps(folder: Path) -> list[int]:
    file = folder / "run" / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def ended(program: subprocess.Popen[str], number: signal.Signals, folder: Path, past: int) -> str:
    """What the program said; it was sent the signal once it recorded more than `past` steps."""
    try:
        limit = time.monotonic() + 120
        while len(steps(folder)) <= past:
            assert program.poll() is None, program.communicate()[1]
            assert time.monotonic() < limit, "no step was made"
            time.sleep(0.05)
        program.send_signal(number)
        said = program.communicate(timeout=120)[1]
    finally:
        program.kill()
    assert program.returncode == 130, said
    return said


@pytest.mark.timeout(300)
@pytest.mark.system
def test_sigterm_saves_a_checkpoint_on_ray_whose_own_handler_would_die_of_it(
    tmp_path: Path,
) -> None:
    put(tmp_path / "data", "big", shards=3, rows=16)
    said = ended(started(tmp_path, ray=True), signal.SIGTERM, tmp_path, past=1)
    assert "SIGTERM: saving a checkpoint and ending" in said
    made = steps(tmp_path)
    assert made == list(range(1, made[-1] + 1))
    assert (tmp_path / "run" / "checkpoints" / f"step-{made[-1]:08d}.pt").exists()


@pytest.mark.timeout(300)
def test_ctrl_c_and_sigterm_save_a_checkpoint_and_the_run_goes_on(tmp_path: Path) -> None:
    put(tmp_path / "data", "big", shards=3, rows=16)
    said = ended(started(tmp_path), signal.SIGINT, tmp_path, past=1)
    assert "SIGINT: saving a checkpoint and ending" in said
    assert "the same command goes on from here" in said
    first = steps(tmp_path)
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert saved.name == f"step-{first[-1]:08d}.pt"  # nothing is lost
    said = ended(started(tmp_path), signal.SIGTERM, tmp_path, past=len(first))
    assert f"goes on from step {first[-1]}" in said
    second = steps(tmp_path)
    assert second == list(range(1, second[-1] + 1))
    assert (tmp_path / "run" / "checkpoints" / f"step-{second[-1]:08d}.pt").exists()
