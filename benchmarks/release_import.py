"""A release of 1,281,167 images becomes a dataset, and one again, in memory that does not grow.

Releases of several sizes in the published format are generated, each imported and exported by a
process of its own whose largest resident set the system reports, and the files that come out are
compared with those that went in, byte by byte.
"""

from __future__ import annotations

import filecmp
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import codec
import harness
import numpy as np
import torch
import tyro

from services.shards.cache import ShardCache
from services.shards.release import export_release, import_release
from services.shards.release_files import ReleaseSplit, write_split
from services.shards.store import open_store
from services.types import TokenRows
from services.wire.seit import v1 as wire

SPEC: wire.TokenSpec = codec.SPEC
SIZES = (100_000, 1_281_167)
QUICK_SIZES = (10_000, 40_000)
POOL_ROWS = 16_384
CACHE_BYTES = 64 << 20
DATASET = "release"


@dataclass(frozen=True)
class Options(harness.Options):
    step: Annotated[tuple[str, Path] | None, tyro.conf.arg(metavar="{import,export} FOLDER")] = None
    """For the benchmark itself: do one step in this process and print its figures."""


def generated(rows: int) -> Iterator[TokenRows]:
    """Rows with skewed codes: those of a pool in ever new order, each shifted by some tokens."""
    pool = next(codec.draw(POOL_ROWS))
    rng = np.random.default_rng(7)
    for start in range(0, rows, len(pool)):
        count = min(len(pool), rows - start)
        index = rng.permutation(len(pool))[:count]
        flat = np.roll(pool.ids.reshape(len(pool), -1)[index], int(rng.integers(1024)), axis=1)
        yield TokenRows(
            flat.reshape(count, SPEC.grid_height, SPEC.grid_width),
            rng.integers(0, 1000, count),
            [""] * count,  # the format has no place for keys
            np.zeros(count, np.int64),
        )


def generate(folder: Path, rows: int) -> None:
    folder.mkdir()
    write_split(ReleaseSplit(folder, f"{DATASET}-train"), generated(rows), rows, SPEC.codes)
    torch.save(torch.randn(SPEC.codes, SPEC.channels), folder / "codebook.ckpt")


def step(name: str, folder: Path) -> None:
    """One step in this process: seconds and the largest resident set so far, as JSON."""
    root = open_store(str(folder / "root"))
    base = peak_bytes()
    began = time.perf_counter()
    if name == "import":
        size = (SPEC.image_height, SPEC.image_width)
        grid = (SPEC.grid_height, SPEC.grid_width)
        import_release(folder / "in", root, DATASET, grid=grid, image_size=size)
    else:
        (folder / "out").mkdir()
        cache = ShardCache(folder / "cache", CACHE_BYTES)
        export_release(root, DATASET, folder / "out", cache)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes(), "base_bytes": base}))


def peak_bytes() -> int:
    """This program's largest resident set; getrusage would count the one that forked it, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def in_a_process(name: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--step", name, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    options = harness.options(__doc__, Options)
    if options.step is not None:
        step(*options.step)
        return
    report = harness.Report("release_import", options, packages=("numpy", "pyarrow", "torch"))
    sizes = QUICK_SIZES if options.quick else SIZES
    peaks: dict[str, list[float]] = {"import": [], "export": []}
    for rows in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            generate(folder / "in", rows)
            data = (folder / "in" / f"{DATASET}-train-token.data.bin.gz").stat().st_size
            report.add(f"{rows}_release_bytes_per_image", data / rows, "B")
            for name in ("import", "export"):
                run = in_a_process(name, folder)
                seconds, peak, base = run["seconds"], run["peak_bytes"], run["base_bytes"]
                peaks[name].append(peak)
                report.add(f"{rows}_{name}_seconds", seconds, "s")
                report.add(f"{rows}_{name}_images_per_second", rows / seconds, "1/s")
                report.add(f"{rows}_{name}_peak_bytes", peak, "B", peer=base)
                report.add(f"{rows}_{name}_step_bytes", peak - base, "B")
            stored = sum(path.stat().st_size for path in folder.glob("root/*/shards/*"))
            report.add(f"{rows}_dataset_bytes_per_image", stored / rows, "B", peer=data / rows)
            names = [path.name for path in sorted((folder / "in").glob(f"{DATASET}-*"))]
            same, other, missing = filecmp.cmpfiles(
                folder / "in", folder / "out", names, shallow=False
            )
            if other or missing or len(same) != 3:
                raise AssertionError(f"export differs from what was imported: {other + missing}")
            report.add(f"{rows}_files_equal_after_export", len(same), "files", at_least=3)
    for name, bytes_ in peaks.items():
        report.add(f"{name}_peak_growth", max(bytes_) / bytes_[0], "x", at_most=1.1)
    report.note(
        "peak_bytes is the process's largest resident set, the interpreter and its modules "
        "included; its peer is what they had taken before the step began, step_bytes the "
        f"difference. peak_growth compares {sizes[0]} images with {sizes[-1]}. One run of each: "
        "what is claimed is memory, times are for orientation."
    )
    report.finish()


if __name__ == "__main__":
    main()
