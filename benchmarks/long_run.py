"""What a long run leaves behind: memory, open files and threads that grow with the steps done.

Three programs as a user starts them, each by itself: a trainer on one device, the same one on a
Ray of its own with an augmentation actor, and the stats service under a mix of questions while
versions are committed. Small pictures and a small model, so that steps, which is what a leak is
counted in, are many; the node's cache has room for half of the data. The first half of the time is
left out of each figure: caches fill, pools start.

Through Ray not everything that grows is ours: its head remembers the last 100,000 tasks, about as
many steps, and an execution of Ray Data remembers something of each block until it ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import harness
import numpy as np
import stats_load
from parts.growth import Sample, Watch, growth, settled
from peers import seit

from services.errors import FormatError
from services.shards.store import open_store
from services.stats.flows import parse_word

ROWS, SHARD_ROWS, BATCH, GRID = 16_384, 512, 32, 8
STEPS = 100_000
"""What figures stand for: about a pre-training of the paper (400 epochs of 4,096 rows a step)."""

ANSWERS = 1_000_000
MOST_BYTES = {"alone": 64 << 20, "ray": 640 << 20, "service": 64 << 20}
_TRAINER = Path(__file__).resolve().parents[1] / "trainers" / "mtm.py"


@dataclass(frozen=True)
class Options(harness.Options):
    """Flags."""

    minutes: float = 0.0
    """Time of each program; 0 takes 20, or half a minute in a quick run."""
    only: Literal["alone", "ray", "service"] | None = None
    """One program; default: all of them, one after the other."""


def watched(
    command: list[str], done: Callable[[], float], seconds: float, environment: dict[str, str]
) -> list[Sample]:
    """Samples of a program that works for `seconds`, and is then told to stop as by Ctrl-C."""
    with tempfile.TemporaryFile() as said:
        running = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            settled(running.pid, lambda: done() > 0, 300)
            watch = Watch(running.pid, done, max(0.5, min(5.0, seconds / 60)))
            watch.start()
            with suppress(subprocess.TimeoutExpired):
                running.wait(seconds)
            if running.returncode is not None:
                said.seek(0)
                tail = said.read()[-3000:].decode(errors="replace")
                raise RuntimeError(f"{command[1]} ended early, {running.returncode}:\n{tail}")
            return watch.stop()
        finally:
            running.send_signal(signal.SIGINT)
            running.wait(120)


def train(folder: Path, seconds: float, *flags: str) -> list[Sample]:
    """The trainer on one device, or on a Ray."""
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 64, (ROWS, GRID, GRID)).astype(np.uint16)
    seit.write(ids, rng.integers(0, 10, ROWS), folder / "data", SHARD_ROWS)
    out = folder / "run"
    command = [
        *(sys.executable, str(_TRAINER), "--recipe", "mtm-tiny", "--out", str(out)),
        *("--data.root", str(folder / "data"), "--data.dataset", seit.DATASET),
        *("--data.validation-split", "train", "--rows", str(ROWS)),
        *("--augment.overrides", "adapt.share", "0"),
        *("--model.width", "32", "--model.depth", "1", "--model.heads", "2"),
        *("--order.global-batch", str(BATCH), "--order.block", str(BATCH // 2)),
        *("--loop.epochs", "1000000", "--loop.validate-every", "20"),
        *flags,
    ]
    word = out / "streams" / "rank-0.json"

    def steps() -> float:
        with suppress(OSError, FormatError):
            return parse_word(word.read_bytes(), 0).flow.step
        return 0.0

    rows_bytes = sum(path.stat().st_size for path in (folder / "data").rglob("*.parquet"))
    cache = {"SEIT_CACHE_DIR": str(folder / "cache"), "SEIT_CACHE_BYTES": str(rows_bytes // 2)}
    return watched(command, steps, seconds, cache)


def serve(folder: Path, seconds: float) -> list[Sample]:
    """The stats service, asked without a pause by as many clients as in `stats_load`."""
    root = open_store(str(folder / "data"))
    names = [f"set-{number:02d}" for number in range(20)]
    for name in names:
        stats_load.put(root, stats_load.manifest(name, 1, 100))
    port = stats_load.free_port()
    command = [sys.executable, "-m", "services.cli", "serve", root.url, "--port", str(port)]
    ended, asked = threading.Event(), stats_load.questions(names, 0)
    answers = 0

    def ask() -> None:
        nonlocal answers
        while not ended.is_set():
            with suppress(OSError):
                stats_load.ask(port, next(asked))
                answers += 1

    def commit() -> None:
        version = 1
        while not ended.wait(5.0):
            version += 1
            for name in names:
                stats_load.put(root, stats_load.manifest(name, version, 100))

    threads = [threading.Thread(target=each, daemon=True) for each in (ask, commit)]
    for thread in threads:
        thread.start()
    try:
        return watched(command, lambda: answers, seconds, {"SEIT_STATS_RATE": "1M"})
    finally:
        ended.set()
        for thread in threads:
            thread.join(30)


def add(report: harness.Report, name: str, samples: list[Sample], per: int, unit: str) -> None:
    """Growth of everything, and of the memory of each role, for `per` units of work."""
    done = [sample.done for sample in samples]
    memory = growth(done, [sample.all_memory for sample in samples]) * per
    report.add(f"{name}_{unit}", done[-1], "1")
    report.add(f"{name}_memory_bytes", samples[-1].all_memory, "B")
    report.add(f"{name}_memory_growth_bytes", memory, "B", at_most=MOST_BYTES[name])
    for role in sorted({role for sample in samples for role in sample.memory}):
        held = [sample.memory.get(role, 0) for sample in samples]
        report.add(f"{name}_memory_growth_bytes_{role}", growth(done, held) * per, "B")
    middle = len(samples) // 2
    for kind in ("files", "threads"):
        counts = [float(getattr(sample, kind)) for sample in samples]
        later = max(counts[-len(counts) // 4 :])
        report.add(f"{name}_{kind}_more", later - max(counts[middle : -len(counts) // 4]), "1")


def main() -> None:
    options = harness.options(__doc__, Options)
    seconds = 60 * options.minutes or (30.0 if options.quick else 1200.0)
    report = harness.Report("long_run", options, packages=("torch", "ray", "fastapi", "uvicorn"))
    programs: dict[str, Callable[[Path], list[Sample]]] = {
        "alone": lambda folder: train(folder, seconds, "--cluster.no-ray"),
        "ray": lambda folder: train(folder, seconds),
        "service": lambda folder: serve(folder, seconds),
    }
    for name, program in programs.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory() as scratch:
                began = time.monotonic()
                samples = program(Path(scratch))
            per, unit = (ANSWERS, "answers") if name == "service" else (STEPS, "steps")
            add(report, name, samples, per, unit)
            report.note(
                f"{name}: {len(samples)} samples in {time.monotonic() - began:.0f} s; growth is"
                f" that of {per:,} {unit}."
            )
    report.finish()


if __name__ == "__main__":
    main()
