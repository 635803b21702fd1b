"""The share of a training's time that is spent waiting for batches: at most 1 %.

MTM as `mtm-base` augments it (28 x 28 of 32 x 32 tokens, TokenAdapt off) trains a ViT-Ti on this
machine, once through Ray Data and Ray Train with one CPU actor, once without Ray. The meter of the
run tells the share, here of the second half of an epoch: the first waits for Ray to start.

An accelerator takes batches faster, and so needs more cores beside it than one. `headroom` says
how much faster the same stream, alone, is than the training that it feeds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import harness
import numpy as np
from peers import data, seit

HERE = Path(__file__).resolve().parent
BATCH, BLOCK, LANES, STEPS = 16, 8, 2, 192
RUNS = {
    "ray": ("--cluster.cpus-per-worker", "1", "--cluster.augment-actors", "1"),
    "no_ray": ("--cluster.no-ray",),
}


@dataclass(frozen=True)
class Options(harness.Options):
    """Flags."""

    scratch: Path | None = None
    """Folder for data and runs; default: a temporary one."""


def train(folder: Path, name: str, steps: int) -> dict[str, float]:
    """What the run wrote about its last `steps / 2` steps."""
    out = folder / name
    words = [
        *("--recipe", "mtm-base", "--data.root", str(folder / "root"), "--out", str(out)),
        *("--data.dataset", seit.DATASET, "--data.validation-split", "train"),
        *("--model.size", "tiny", "--order.global-batch", str(BATCH), "--order.block", str(BLOCK)),
        *("--rows", str(BATCH * steps), "--loop.epochs", "1", "--optim.warmup-epochs", "0"),
        *("--loop.log-every", str(steps // 2), "--loop.precision", "float32"),
        *("--cluster.workers", "1", "--cluster.gpus-per-worker", "0", *RUNS[name]),
    ]
    program = [sys.executable, str(HERE.parent / "trainers" / "mtm.py"), *words]
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, float] = json.loads((out / "report.json").read_text())
    return found


def alone(folder: Path) -> float:
    """Rows a second of the same stream with nobody behind it, through Ray with one actor."""
    report = folder / "alone.json"
    words = [
        *("stream", "--root", str(folder / "root"), "--dataset", seit.DATASET, "--recipe", "mtm"),
        *("--crop", "28", "--batch", str(BATCH), "--block", str(BLOCK), "--seconds", "10"),
        *("--report", str(report)),
    ]
    program = [sys.executable, "-m", "services.cli", *words]
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
    return float(json.loads(report.read_text())["rows_per_second"])


def main() -> None:
    options = harness.options(__doc__, Options)
    steps = 32 if options.quick else STEPS
    report = harness.Report("train_stall", options, packages=("ray", "torch"))
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folder = Path(scratch)
        data.draw(BATCH * steps, folder / "raw")
        ids, labels = np.load(folder / "raw" / "ids.npy"), np.load(folder / "raw" / "labels.npy")
        seit.write(ids, labels, folder / "root", shard_rows=1024)
        found = {name: train(folder, name, steps) for name in RUNS}
        fastest = max(run["images_per_second"] for run in found.values())
        for name, run in found.items():
            report.add(f"{name}_stalled_share", run["stalled_share"], "", at_most=0.01)
            report.add(f"{name}_images_per_second", run["images_per_second"], "images/s")
        report.add("headroom", alone(folder) / fastest, "x")
    report.finish()


if __name__ == "__main__":
    main()
