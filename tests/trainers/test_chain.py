"""A chain of programs that is told to go: its step is told once, is waited for, and is not done."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.until import until

_STEP = """
import os, pathlib, sys, time
from trainers.signals import stopping
folder = pathlib.Path(sys.argv[1])
folder.mkdir(exist_ok=True)
(folder / "process").write_text(str(os.getpid()))
if (folder / "saved").exists():
    (folder / "made").touch()
    sys.exit(0)
with stopping("saving") as stop:
    (folder / "runs").touch()
    while not stop.wait(60):
        pass
    (folder / "told").touch()
    while not (folder.parent / "may-end").exists():
        time.sleep(0.02)
    (folder / "saved").touch()
    sys.exit(stop.code)
"""
"""A step that says when it was told to go, and ends well once it may; the next time it is done."""

_CHAIN = """
import contextlib, sys
from dataclasses import dataclass
from pathlib import Path
from trainers import chain
from trainers.program import RESUMES, program

chain.local_cluster = lambda: contextlib.nullcontext("127.0.0.1:1")  # steps here need none
out = Path(sys.argv[1])
steps = [
    chain.Step(name, "", [sys.executable, sys.argv[2], str(out / name)], out / name, ["made"])
    for name in ("first", "second")
]

@dataclass(frozen=True)
class Options:
    pass

work = lambda config: chain.run_steps(steps, out, "pictures")[0]
raise SystemExit(program(Options, work, [], interrupted=RESUMES))
"""


class Chain:
    """Two such steps, run by a process that leads a group of its own, as a terminal's do."""

    def __init__(self, out: Path) -> None:
        self.out = out
        step = out / "step.py"
        step.write_text(_STEP)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CHAIN, str(out), str(step)],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )

    def end(self) -> tuple[int, str]:
        """Its exit code, and what it said."""
        said = self.process.communicate(timeout=60)[1]
        return self.process.returncode, said

    @property
    def step(self) -> int:
        """Id of the process that the first step runs in."""
        return int((self.out / "first" / "process").read_text())

    def step_runs(self) -> bool:
        """Whether that process is there, and no zombie."""
        try:
            state = Path(f"/proc/{self.step}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state != "Z"


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    made = Chain(tmp_path)
    until((tmp_path / "first" / "runs").exists)
    yield made
    (tmp_path / "may-end").touch()
    made.process.kill()
    if made.step_runs():
        with contextlib.suppress(ProcessLookupError):
            os.kill(made.step, signal.SIGKILL)
    made.process.communicate()


@pytest.mark.parametrize(
    ("send", "number"),
    [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGTERM), (os.killpg, signal.SIGINT)],
    ids=["SIGTERM", "SIGTERM to the group", "Ctrl-C"],
)
def test_a_step_is_told_once_and_waited_for_and_the_same_command_goes_on(
    chain: Chain, send: Callable[[int, int], None], number: signal.Signals
) -> None:
    """Also where all of a terminal, or of `timeout`, get the signal: twice would end it at once."""
    out = chain.out
    send(chain.process.pid, number)
    until((out / "first" / "told").exists)
    assert chain.process.poll() is None
    (out / "may-end").touch()
    code, said = chain.end()
    assert code == 128 + number, said
    assert (out / "first" / "saved").exists()
    assert not chain.step_runs()
    assert f"{number.name}: passing it on" in said
    assert said.endswith("interrupted; the same command goes on from here\n")
    assert "Traceback" not in said
    assert json.loads((out / "steps" / "first.json").read_text())["seconds"] is None
    assert not (out / "second").exists()

    again = Chain(out)
    until((out / "second" / "runs").exists)  # the first is done, from what it saved
    assert json.loads((out / "steps" / "first.json").read_text())["seconds"] is not None
    again.process.send_signal(number)
    assert again.end()[0] == 128 + number


def test_a_second_signal_ends_both_at_once(chain: Chain) -> None:
    chain.process.send_signal(signal.SIGTERM)
    until((chain.out / "first" / "told").exists)
    chain.process.send_signal(signal.SIGTERM)
    assert chain.end()[0] == -signal.SIGTERM
    until(lambda: not chain.step_runs())
    assert not (chain.out / "first" / "saved").exists()


def test_a_step_is_told_where_the_chain_is_killed(chain: Chain) -> None:
    chain.process.kill()
    until((chain.out / "first" / "told").exists)
    (chain.out / "may-end").touch()
    until((chain.out / "first" / "saved").exists)
    until(lambda: not chain.step_runs())
