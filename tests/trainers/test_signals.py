"""Programs that a signal tells to go: a checkpoint, an exit code that tells of the signal, and the
same command goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainers.test_token_runs import SMALL, put
from trainers.checkpoint import Checkpoints, checkpoint_steps, load_export
from trainers.command import run
from trainers.config import MtmRun
from trainers.recipes.mtm import RECIPES
from trainers.step import mtm_worker
from trainers.streams import settle

ROOT = Path(__file__).resolve().parents[2]
LONG = ("--loop.epochs", "200000")  # far more than a test waits for
RARE = ("--loop.checkpoint-every", "1000000")


def words(folder: Path, *more: str, out: str = "run") -> list[str]:
    """Of a command line that trains on the small dataset."""
    where = ("--data.root", str(folder / "data"), "--data.dataset", "big", "--out", folder / out)
    return [*SMALL, *map(str, where), *more]


class Program:
    """mtm.py in a process of its own."""

    def __init__(self, folder: Path, *more: str, ray: bool = False) -> None:
        self.out = folder / "run"
        options = [
            word for word in words(folder, *more) if not (ray and word == "--cluster.no-ray")
        ]
        environment = {**os.environ, "RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"}
        environment["SEIT_CACHE_DIR"] = str(folder / "cache")
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "trainers" / "mtm.py"), *options],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until(self, there: Callable[[], object]) -> Program:
        """Itself, once there is what it is waited for."""
        limit = time.monotonic() + 120
        while not there():
            if self._process.poll() is not None or time.monotonic() > limit:
                self._process.kill()
                pytest.fail(f"it never came to that: {self._process.communicate()[1]}")
            time.sleep(0.02)
        return self

    def past(self, step: int) -> Program:
        """Itself, once it recorded a step after `step`."""
        return self.until(lambda: self.steps()[step:])

    def sent(self, number: signal.Signals) -> str:
        """What it said until its end, after this signal."""
        self._process.send_signal(number)
        try:
            said = self._process.communicate(timeout=120)[1]
        finally:
            self._process.kill()
        assert self._process.returncode == 128 + number, said
        return said

    def steps(self) -> list[int]:
        """The steps that were recorded."""
        return [entry["step"] for entry in entries(self.out) if "grad_norm" in entry]

    def saved(self) -> int:
        """The step of its newest checkpoint, which reads well, with nothing half written beside."""
        newest = checkpoint_steps(str(self.out))[-1]
        assert Checkpoints(str(self.out), 1).load(newest).step == newest
        assert not list((self.out / "checkpoints").glob(".*"))
        return newest


def entries(out: Path) -> list[dict[str, Any]]:
    """All that was recorded of a run so far."""
    file = out / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def to_the_end(folder: Path, *more: str, out: str = "run") -> None:
    """Train in this process, which is quicker to start."""
    assert run(MtmRun, RECIPES, mtm_worker, settle, words(folder, *more, out=out)) == 0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    put(tmp_path / "data", "big", shards=3, rows=16)
    monkeypatch.setenv("SEIT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.timeout(300)
@pytest.mark.system
@pytest.mark.slow  # the short form, through `seit demo`, is in tests/system/test_demo.py
def test_sigterm_saves_a_checkpoint_on_ray_whose_own_handler_would_die_of_it(folder: Path) -> None:
    program = Program(folder, *RARE, *LONG, ray=True)
    said = program.past(1).sent(signal.SIGTERM)
    assert "SIGTERM: saving a checkpoint and ending" in said
    made = program.steps()
    assert made == list(range(1, made[-1] + 1))
    assert program.saved() == made[-1]


@pytest.mark.timeout(300)
def test_a_run_that_was_told_to_go_goes_on_as_if_nothing_had_been(folder: Path) -> None:
    long = (*RARE, "--loop.epochs", "100", "--loop.validate-every", "20", "--loop.ema", "0.9")
    program = Program(folder, *long).past(1)
    said = program.sent(signal.SIGINT)
    assert "SIGINT: saving a checkpoint and ending" in said
    first = program.saved()
    assert first == program.steps()[-1] < 300  # nothing is lost, and not all was done
    assert f"stopped after step {first}, which is saved in {program.out}/checkpoints; the" in said
    assert "the same command goes on from here" in said
    program = Program(folder, *long).past(first)
    said = program.sent(signal.SIGTERM)
    assert f"goes on from step {first}" in said
    assert first < program.saved() == program.steps()[-1]
    to_the_end(folder, *long)
    to_the_end(folder, *long, out="whole")
    assert entries(program.out) == entries(folder / "whole")
    models = [load_export(str(folder / name))[0] for name in ("run", "whole")]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


@pytest.mark.timeout(300)
def test_a_validation_is_left_and_made_when_the_run_goes_on(folder: Path) -> None:
    put(folder / "data", "big", shards=3, rows=2000)
    long = (*RARE, "--loop.epochs", "1", "--data.validation-split", "train")
    program = Program(folder, *long).past(374)  # the last step; as many batches of validation
    assert "stopped after step 375" in program.sent(signal.SIGTERM)
    assert program.saved() == 375
    before = entries(program.out)
    assert not [entry for entry in before if "validation_loss" in entry]
    to_the_end(folder, *long)
    *same, last = entries(program.out)
    assert same == before
    assert (last["step"], "validation_loss" in last) == (375, True)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("lines", [0, 3], ids=["before the first step", "between many checkpoints"])
def test_whenever_it_comes_no_step_is_lost(folder: Path, lines: int) -> None:
    """With a checkpoint at every step, most of the time one is being written."""
    program = Program(folder, *LONG)
    if lines:
        program.past(lines)
    else:
        program.until((program.out / "metrics.jsonl").exists)
    program.sent(signal.SIGTERM)
    made = program.steps()
    assert made == list(range(1, len(made) + 1))
    if made:
        assert program.saved() == made[-1]
    else:
        assert (lines, checkpoint_steps(str(program.out))) == (0, [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_program_that_hangs(number: signal.Signals) -> None:
    """Not even what it would clean up on an exception holds it up."""
    text = """
import sys, threading
from trainers.signals import stopping
with stopping("saving a checkpoint") as stop:
    try:
        print("ready", flush=True)
        stop.wait(60)
        print("told", flush=True)
        threading.Event().wait(60)
    finally:
        threading.Event().wait(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        for word in ("ready\n", "told\n"):
            assert program.stdout.readline() == word
            program.send_signal(number)
        said = program.communicate(timeout=20)[1]
    assert program.returncode == -number
    assert said == f"{number.name}: saving a checkpoint and ending; once more ends at once\n"
