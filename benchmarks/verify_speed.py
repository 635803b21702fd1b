"""`seit verify` against the speed at which the disk gives the same files, as a ratio.

A dataset of 32 x 32 grids is written, and the command checks size and checksum of every file, on
all cores. In the same run each file is read once from start to end in pieces of 1 MiB, as dd
would. With --rows the command unpacks every row and counts labels and codes anew, besides.
Cold: the system was told to drop the files from its page
cache before; warm: it holds them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import codec
import harness

from services.shards.manifest import commit, load_manifest
from services.shards.store import open_store
from services.shards.verify import Check, verify_dataset, verify_files
from services.shards.writer import build_split, write_shard
from services.wire.seit import v1 as wire

PIECE = 1 << 20
NAME = "ds"


def write(scratch: Path, rows: int) -> None:
    """The dataset; on disk, not only in memory, when it returns."""
    root = open_store(str(scratch))
    results = [write_shard(root, NAME, "train", block, codec.SPEC) for block in codec.draw(rows)]
    split = build_split(root, NAME, "train", results, codec.SPEC.codes)
    commit(
        root,
        wire.Manifest(dataset=NAME, spec=codec.SPEC, tokenizer_kind="release", splits=[split]),
    )


def shards(scratch: Path) -> list[Path]:
    """Files of the dataset in its order."""
    manifest = load_manifest(open_store(str(scratch)), NAME).manifest
    return [scratch / NAME / shard.path for split in manifest.splits for shard in split.shards]


def drop(paths: list[Path]) -> None:
    """Out of the page cache, as far as the system agrees."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(paths: list[Path]) -> int:
    """Bytes of all files, read in order."""
    total, piece = 0, bytearray(PIECE)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(piece):
                total += count
    return total


def timed(run: Callable[[], object], before: Callable[[], object], repeats: int) -> float:
    """Median seconds of `run`, each time after `before`, which is not counted."""
    seconds = []
    for _ in range(repeats):
        before()
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def command(scratch: Path) -> None:
    """`seit verify`, the whole process."""
    program = "import sys; from services.cli import main; sys.exit(main())"
    arguments = [sys.executable, "-c", program, "verify", str(scratch), NAME]
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)


def expect_sound(checks: Iterator[Check]) -> None:
    """To the end of what the library finds, which must be nothing."""
    if bad := [check.failure for check in checks if check.failure is not None]:
        raise AssertionError(f"a sound dataset is said to be damaged: {bad}")


def main() -> None:
    options = harness.options(__doc__, harness.Options)
    report = harness.Report("verify_speed", options, packages=("numpy", "pyarrow", "xxhash"))
    rows = 65_536 if options.quick else 1_048_576
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(folder, rows)
        paths = shards(folder)
        size = read(paths)

        root = open_store(str(folder))
        speeds = {}
        for state, before in {"cold": lambda: drop(paths), "warm": lambda: read(paths)}.items():
            for name, run in {
                "read": lambda: read(paths),
                "library": lambda: expect_sound(verify_files(root, NAME)),
                "command": lambda: command(folder),
                "rows": lambda: expect_sound(verify_dataset(root, NAME)),
            }.items():
                speeds[state, name] = size / timed(run, before, 5)
    report.add("dataset_bytes", size, "B")
    for state in ("cold", "warm"):
        disk = speeds[state, "read"]
        report.add(f"{state}_read_bytes_per_second", disk, "B/s")
        for name in ("library", "command", "rows"):
            speed = speeds[state, name]
            report.add(f"{state}_{name}_bytes_per_second", speed, "B/s", peer=disk)
        ratio = speeds[state, "library"] / disk
        target = 0.9 if state == "cold" else None  # the disk's own speed varies by a tenth
        report.add(f"{state}_library_over_read", ratio, "1", at_least=target)
    images = speeds["warm", "rows"] * rows / size
    report.add("warm_rows_images_per_second", images, "1/s")
    report.note(
        f"{rows} rows in {len(paths)} shards. command is the whole process, from the start of "
        "Python on, which takes most of its time here; library is what it calls, in a process that "
        "runs already; rows is the library with --rows. Read is one thread."
    )
    report.finish()


if __name__ == "__main__":
    main()
