"""What a process and its children hold while they work, and how that grows with their work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Sample:
    """What all processes held when `done` units of work were done.

    memory: bytes that are no copy of a file and belong to no other process, by the role of the
    processes that hold them. files, threads: counts over all processes.
    """

    done: float
    memory: dict[str, int] = field(default_factory=dict)
    files: int = 0
    threads: int = 0

    @property
    def all_memory(self) -> int:
        return sum(self.memory.values())


class Watch(threading.Thread):
    """Samples a process tree every `seconds`, until it is told to stop.

    done: units of work so far; asked before each sample.
    """

    def __init__(self, pid: int, done: Callable[[], float], seconds: float) -> None:
        super().__init__(daemon=True)
        self._root, self._count, self._seconds = psutil.Process(pid), done, seconds
        self._ended = threading.Event()
        self.samples: list[Sample] = []

    def run(self) -> None:
        while not self._ended.wait(self._seconds):
            with suppress(psutil.NoSuchProcess):
                self.samples.append(self._sample())

    def _sample(self) -> Sample:
        done, memory, files, threads = self._count(), dict[str, int](), 0, 0
        for process in [self._root, *self._root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, OSError):
                role, held = _role(process), _private_bytes(process.pid)
                files += process.num_fds()
                threads += process.num_threads()
                memory[role] = memory.get(role, 0) + held
        return Sample(done, memory, files, threads)

    def stop(self) -> list[Sample]:
        self._ended.set()
        self.join()
        return self.samples


def growth(done: Sequence[float], held: Sequence[float]) -> float:
    """Growth of `held` for a unit of `done`: the slope of a line through the later half.

    The first half is left out: caches fill, pools start, allocators find their size.
    """
    later = slice(len(done) // 2, None)
    x, y = np.asarray(done[later], float), np.asarray(held[later], float)
    if len(x) < 2 or x[0] == x[-1]:
        raise RuntimeError(f"nothing was done between {len(x)} samples: run it for longer")
    return float(np.polyfit(x, y, 1)[0])


def settled(pid: int, ready: Callable[[], bool], limit_seconds: float) -> None:
    """Wait until `ready()`. Raises: RuntimeError if the process ends first, or at the limit."""
    until = time.monotonic() + limit_seconds
    while not ready():
        if not psutil.pid_exists(pid) or time.monotonic() > until:
            raise RuntimeError(f"process {pid} did not get to work within {limit_seconds:g} s")
        time.sleep(0.2)


def _role(process: psutil.Process) -> str:
    """What a process is for: a Ray worker by what it runs, others by their program."""
    title = process.cmdline()
    if not title:
        return process.name()
    if title[0].startswith("ray::"):
        return title[0].partition("(")[0].partition(".")[0].partition(" ")[0]
    return Path(title[0]).name if process.ppid() != 1 else process.name()


def _private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))
