"""Share of a run's time in which its trainer waits for rows: at most 1 % where the stream can make
them as fast as the trainer takes them.

The command of a user, `trainers/mtm.py` on a Ray of its own: rows of the published form, TokenAdapt
of the published size on half of them, in an actor on a core, and a small model on another core. The
figures are the meter's, as the run itself reports them for the stats service.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import harness
import numpy as np
from peers import data, seit

from services.augment.tokenadapt import TokenAdapt, TokenAdaptConfig
from services.stats.flows import parse_word
from services.wire.seit import v1 as wire

BATCH = 32
_TRAINER = Path(__file__).resolve().parents[1] / "trainers" / "mtm.py"


@dataclass(frozen=True)
class Options(harness.Options):
    """Flags."""

    steps: int = 0
    """Steps of the run; 0 takes 96, or 8 in a quick run."""


def run(folder: Path, steps: int) -> wire.Flow:
    """Pre-train for that many steps; the stream's counts at the end, as the run wrote them."""
    rows = steps * BATCH
    data.draw(rows, folder / "raw")
    ids, labels = np.load(folder / "raw" / "ids.npy"), np.load(folder / "raw" / "labels.npy")
    seit.write(ids, labels, folder / "data", shard_rows=1024)
    adapt = TokenAdaptConfig(
        grid=(data.GRID, data.GRID), channels=seit.CHANNELS, codes=data.CODES, out_grid=(28, 28)
    )
    weights, out = folder / "tokenadapt.safetensors", folder / "run"
    weights.write_bytes(TokenAdapt(adapt).to_bytes())
    size = "--model.width 256 --model.depth 6 --model.heads 4 --model.decoder-width 128"
    command = [
        *(sys.executable, str(_TRAINER), "--recipe", "mtm-tiny", "--out", str(out)),
        *("--data.root", str(folder / "data"), "--data.dataset", seit.DATASET),
        *("--data.validation-split", "train", "--augment.tokenadapt", str(weights)),
        *("--augment.crop", "28", *size.split(), "--order.global-batch", str(BATCH)),
        *("--order.block", str(BATCH // 2)),
        *("--loop.epochs", "1", "--optim.warmup-epochs", "0", "--loop.log-every", "4"),
        *("--cluster.cpus-per-worker", "1", "--cluster.augment-cpus-per-actor", "1"),
    ]
    environment = {**os.environ, "SEIT_CACHE_DIR": str(folder / "cache")}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return parse_word((out / "streams" / "rank-0.json").read_bytes(), 0).flow


def main() -> None:
    options = harness.options(__doc__, Options)
    steps = options.steps or (8 if options.quick else 96)
    report = harness.Report("train_stall", options, packages=("torch", "ray"))
    with tempfile.TemporaryDirectory() as scratch:
        flow = run(Path(scratch), steps)
    seconds = flow.stall_seconds + flow.consumer_seconds  # from the first batch to the last
    report.add("stalled_share", flow.stall_seconds / seconds, "share", at_most=0.01)
    report.add("stalled_for_storage_seconds", flow.stall_storage_seconds, "s")
    report.add("stalled_for_augmentation_seconds", flow.stall_augmentation_seconds, "s")
    report.add("trained_seconds", seconds, "s")
    report.add("first_batch_seconds", flow.first_batch_seconds, "s")
    report.add("images_per_second", flow.rows_per_second, "1/s")
    report.note(f"{steps} steps of {BATCH} crops of 28x28 tokens, {data.CODES} codes, one worker.")
    report.finish()


if __name__ == "__main__":
    main()
