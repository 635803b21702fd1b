"""Taking a stream up again at 10, 50 and 90 % of an epoch: the first batch within 0.5 s, and at
most 10 % later than that of a plain start.

Each position is saved by one process, as a trainer's checkpoint would hold it, and taken up by a
fresh one whose cache stands. The clock runs from building the loader, libraries imported and Ray
running, to the first batch. Peers with a position of their own: MosaicML Streaming and LitData.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import harness
from peers.bench import BATCH, OURS, OURS_RAY, Bench

SHARES = (0.1, 0.5, 0.9)
PEERS = ("mosaic", "lit")


@dataclass(frozen=True)
class Options(harness.Options):
    """Flags."""

    rows: int = 0
    """Rows of the dataset; 0 takes 128,000, or 16,384 in a quick run."""
    peers_venv: Path | None = None
    """Environment with the peers' packages: made there if it does not stand. Default: made anew."""
    scratch: Path | None = None
    """Folder for the data, which needs 1 GB; default: a temporary one."""
    repeats: int = 7
    """Fresh processes of each kind (count); one in a quick run."""


@dataclass(frozen=True)
class Starts:
    """Median seconds to the first batch: of a plain start, and at each share of an epoch.

    left: rows that the resumed epoch still gave, and how many should be left, for each share.
    """

    plain: float
    resumed: dict[float, float]
    left: dict[float, tuple[int, int]]


def measure(bench: Bench, contender: str, workers: int, repeats: int) -> Starts:
    """Save positions in one process, and start fresh ones there and at the beginning in turn."""
    steps = {share: max(1, round(share * bench.rows / BATCH)) for share in SHARES}
    files = {share: str(bench.folder / f"{contender}-{share}.pt") for share in SHARES}
    cache = str(bench.folder / f"cache-of-{contender}")
    states = {str(steps[share]): files[share] for share in SHARES}
    bench.run(bench.job(contender, workers, cache=cache, states=states))
    plain: list[float] = []
    resumed: dict[float, list[float]] = {share: [] for share in SHARES}
    left = {}
    for repeat in range(repeats):
        start = bench.job(contender, workers, cache=cache, limit=1)
        plain.append(bench.run(start).first_batch[0])
        for share in SHARES:
            limit = 0 if repeat == 0 else 1  # once the rest of the epoch is looked at as well
            job = bench.job(contender, workers, cache=cache, state=files[share], limit=limit)
            run = bench.run(job)
            resumed[share].append(run.first_batch[0])
            if repeat == 0:
                left[share] = run.rows[0], bench.rows - steps[share] * BATCH
    middle = {share: statistics.median(values) for share, values in resumed.items()}
    return Starts(statistics.median(plain), middle, left)


def add(report: harness.Report, contender: str, starts: Starts, peer: Starts | None) -> None:
    """The figures of one contender; ours carry the targets and Mosaic's figures beside them."""
    ours = contender in (OURS, OURS_RAY)
    report.add(
        f"{contender}_plain_seconds",
        starts.plain,
        "s",
        peer=peer.plain if peer else None,
    )
    for share, seconds in starts.resumed.items():
        name = f"{contender}_resume_{share * 100:.0f}"
        report.add(
            f"{name}_seconds",
            seconds,
            "s",
            peer=peer.resumed[share] if peer else None,
            at_most=0.5 if ours else None,
        )
        report.add(f"{name}_of_plain", seconds / starts.plain, "x", at_most=1.1 if ours else None)
        given, due = starts.left[share]
        if ours and given != due:
            raise AssertionError(f"{contender} gave {given} rows after its position, not {due}")
        report.add(f"{name}_rows_left", given, "rows", peer=due)


def main() -> None:
    options = harness.options(__doc__, Options)
    rows = options.rows or (16_384 if options.quick else 128_000)
    repeats = 1 if options.quick else options.repeats
    keys = [(OURS, 0), *((name, 0) for name in PEERS)]
    if not options.quick:
        keys += [(OURS_RAY, 2)]
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        bench = Bench(Path(scratch), rows, options.peers_venv)
        bench.write(key[0] for key in keys)
        report = harness.Report("stream_resume", options, packages=("torch", "ray"))
        starts = {name: measure(bench, name, workers, repeats) for name, workers in keys}
        found = ", ".join(f"{name} {number}" for name, number in bench.versions().items())
    for name, each in starts.items():
        add(report, name, each, starts["mosaic"] if name in (OURS, OURS_RAY) else None)
    report.note(f"{rows} grids of 1024 tokens, batches of 1024. The peers ran on {found}.")
    report.note(
        f"Medians of {repeats} fresh processes each, plain starts and resumes in turn, no loader"
        " processes. Peer of our figures: Mosaic. rows_left: rows that came after the position,"
        " and beside it how many should."
    )
    report.finish()


if __name__ == "__main__":
    main()
