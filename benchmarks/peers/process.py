"""Running a job in a process of its own, and watching the memory of it and of its children."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from peers.job import Job

BENCHMARKS = Path(__file__).resolve().parents[1]
_SAMPLE_SECONDS = 0.25
_TREE_SAMPLES = 4  # samples between two looks for new children, which go through all processes


@dataclass(frozen=True)
class Outcome:
    """What a process reported, and the most memory that it and its children held together.

    resident_bytes: sum of resident sets, shared pages counted in each process that maps them.
    own_bytes: memory that is no copy of a file: each page once, files' pages left out.
    """

    result: dict[str, Any]
    resident_bytes: int
    own_bytes: int


class SlowError(Exception):
    """A process did not end within its limit, and was ended."""


class _Watch(threading.Thread):
    """Samples a process tree until it is told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(pid)
        self._done = threading.Event()
        self.children: list[psutil.Process] = []
        self.resident_bytes = self.own_bytes = 0

    def run(self) -> None:
        for number in itertools.count():
            if self._done.wait(_SAMPLE_SECONDS):
                return
            if number % _TREE_SAMPLES == 0:
                with suppress(psutil.NoSuchProcess):
                    self.children = self._root.children(recursive=True) or self.children
            self._sample()

    def _sample(self) -> None:
        resident = own = 0
        for process in [self._root, *self.children]:
            with suppress(psutil.NoSuchProcess):
                resident += process.memory_info().rss
                own += _own_bytes(process.pid)
        self.resident_bytes = max(self.resident_bytes, resident)
        self.own_bytes = max(self.own_bytes, own)

    def stop(self) -> None:
        self._done.set()
        self.join()


def _own_bytes(pid: int) -> int:
    """Proportional size of a process's anonymous and shared memory (0 where it has ended)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    fields = (line.split() for line in lines)
    return sum(int(f[1]) * 1024 for f in fields if f[0] in ("Pss_Anon:", "Pss_Shmem:"))


def run(
    job: Job,
    scratch: Path,
    python: str = sys.executable,
    limit_seconds: float | None = None,
    **variables: str,
) -> Outcome:
    """Run a job to its end. `variables`: more of the child's environment.

    Raises: RuntimeError with the end of what it said if it failed; SlowError past the limit.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    result, order, said = scratch / "result.json", scratch / "job.json", scratch / "said.txt"
    result.unlink(missing_ok=True)
    job = replace(job, result=str(result))
    job.dump(order)
    environment = {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",
        "LITDATA_DISABLE_VERSION_CHECK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **variables,
    }
    with open(said, "wb") as output:
        child = subprocess.Popen(
            [python, "-W", "ignore", "-m", "peers.child", str(order)],
            cwd=BENCHMARKS,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    watch = _Watch(child.pid)
    watch.start()
    try:
        child.wait(limit_seconds)
    except subprocess.TimeoutExpired as error:
        raise SlowError(f"{job.contender} did not end within {limit_seconds:g} s") from error
    finally:
        watch.stop()
        left = [psutil.Process(child.pid)] if child.poll() is None else []
        end([*left, *watch.children])
    if child.returncode or not result.exists():
        tail = said.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{job.contender} {job.action} ended with {child.returncode}:\n{tail}")
    return Outcome(json.loads(result.read_text()), watch.resident_bytes, watch.own_bytes)


def end(processes: list[psutil.Process]) -> None:
    """Stop what is left of these processes, and wait until it has gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=10)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=10)
