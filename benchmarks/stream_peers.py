"""Rows of tokens to a trainer, beside the loaders that people use for it: in one process at least
3 times the best of them, through Ray Data at least 1.5 times the best at as many processes.

The same rows stand in each contender's own format, on local disk and behind an S3 server on
loopback. Every contender runs in a process of its own, shuffles, cuts each 32x32 grid at a random
place to 28x28, and hands a trainer batches of ids and labels as torch tensors.

Peers: MosaicML Streaming, LitData and WebDataset, with and without loader processes, and Ray Data's
`read_parquet`. Their packages go into an environment of their own (--peers-venv keeps it).
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import harness
from peers.bench import OTHERS, OURS, OURS_RAY, RAY_IDLE, READ_PARQUET, Bench, Run
from peers.data import folder_bytes
from peers.job import Job
from peers.process import SlowError
from peers.storage import Server, server

PROCESSES = 2
Key = tuple[str, int]  # contender, its loader processes (0: the trainer's own process alone)


@dataclass(frozen=True)
class Options(harness.Options):
    """Flags."""

    rows: int = 0
    """Rows of the dataset; 0 takes 128,000, or 16,384 in a quick run."""
    peers_venv: Path | None = None
    """Environment with the peers' packages: made there if it does not stand. Default: made anew."""
    scratch: Path | None = None
    """Folder for the data, which needs 3 GB; default: a temporary one."""
    places: tuple[Literal["local", "s3"], ...] = ("local", "s3")
    """Where the rows stand; memory is measured from local disk."""
    repeats: int = 3
    """Cold and warm epochs from S3 of each contender (count); one in a quick run."""
    contenders: tuple[Literal["seit", "mosaic", "lit", "web", "seit_ray", "ray_parquet"], ...] = (
        *("seit", "mosaic", "lit", "web", "seit_ray", "ray_parquet"),
    )
    """Who takes part."""
    limit: float = 300.0
    """A peer that needs longer for a run is ended, named, and left out there, seconds."""


def contenders(options: Options) -> list[Key]:
    """Who runs, and with how many loader processes."""
    alone = [(name, 0) for name in (OURS, *OTHERS)]
    spread = [] if options.quick else [(name, PROCESSES) for name in OTHERS]
    everyone = [*alone, *spread, (OURS_RAY, PROCESSES), (READ_PARQUET, PROCESSES)]
    return [key for key in everyone if key[0] in options.contenders]


def written(options: Options) -> list[str]:
    """Whose formats the rows are written in; ours is one with Ray and without."""
    takes_part = {OURS if name == OURS_RAY else name for name in options.contenders}
    return [name for name in (OURS, *OTHERS, READ_PARQUET) if name in takes_part]


def name_of(key: Key) -> str:
    """As it stands in the figures."""
    return f"{key[0]}_{key[1]}_processes" if key[1] else key[0]


def add_claims(report: harness.Report, place: str, rates: dict[Key, float]) -> None:
    """Our rates beside the best of the peers'."""
    peers = {key: rate for key, rate in rates.items() if key[0] not in (OURS, OURS_RAY)}
    alone = [rate for key, rate in peers.items() if not key[1]]
    spread = [rate for key, rate in peers.items() if key[1]]
    for key, against, name, target in (
        ((OURS, 0), alone, "one_process_times_best_peer", 3.0),
        ((OURS, 0), spread, f"one_process_times_best_peer_of_{PROCESSES}", None),
        ((OURS_RAY, PROCESSES), spread, f"ray_times_best_peer_of_{PROCESSES}", 1.5),
    ):
        if key in rates and against:
            report.add(f"{place}_{name}", rates[key] / max(against), "x", at_least=target)


def local(report: harness.Report, bench: Bench, options: Options) -> None:
    """From local disk: epochs at steady state, first batches, memory."""
    epochs = 3 if options.quick else 4
    runs: dict[Key, Run] = {}
    for key in contenders(options):
        try:
            runs[key] = bench.run(bench.job(*key, epochs=epochs))
        except SlowError as slow:
            report.note(f"Left out from local disk: {name_of(key)}: {slow} ({epochs} epochs).")
    idle = bench.run(bench.job(RAY_IDLE, epochs=1))
    add_claims(report, "local", {key: run.rate(1) for key, run in runs.items()})
    for key, run in runs.items():
        ours = key[0] in (OURS, OURS_RAY)
        name = f"local_{name_of(key)}"
        report.add(f"{name}_rows_per_second", run.rate(1), "rows/s")
        if not key[1]:
            report.add(f"{name}_rows_per_core_second", run.core_rate(1), "rows/s")
        report.add(
            f"{name}_first_batch_cold_seconds", run.first_batch[0], "s", at_most=5 if ours else None
        )
        report.add(
            f"{name}_first_batch_next_epoch_seconds",
            run.first(1),
            "s",
            at_most=0.5 if ours else None,
        )
    add_memory(report, runs, idle)
    for name in written(options):
        report.add(f"{name}_stored_bytes_a_row", folder_bytes(bench.data(name)) / bench.rows, "B")


def add_memory(report: harness.Report, runs: dict[Key, Run], idle: Run) -> None:
    """Peaks of whole process trees, ours against the leanest peer's and Ray's own."""
    for kind in ("resident", "own"):
        peaks = {key: float(getattr(run, f"{kind}_bytes")) for key, run in runs.items()}
        mine = (OURS, OURS_RAY)
        theirs = [peak for key, peak in peaks.items() if key[0] not in mine]
        ray = float(getattr(idle, f"{kind}_bytes"))
        report.add(f"ray_idle_peak_{kind}_bytes", ray, "B")
        limits = {OURS: min(theirs), OURS_RAY: min(theirs) + ray} if theirs else {}
        for key, peak in peaks.items():
            limit = limits.get(key[0])
            report.add(f"{name_of(key)}_peak_{kind}_bytes", peak, "B", at_most=limit)


def remote(report: harness.Report, bench: Bench, options: Options) -> None:
    """From S3 on loopback, first with an empty cache folder, then with what that run left."""
    keys = [(OURS, 0), ("lit", 0)] if options.quick else contenders(options)
    repeats = 1 if options.quick else options.repeats
    rates: dict[str, dict[Key, float]] = {"s3_cold": {}, "s3_warm": {}}
    for name in dict.fromkeys(key[0] for key in keys):
        with server() as s3:
            url = s3.upload(bench.data(name), "data")
            for key in (key for key in keys if key[0] == name):
                try:
                    found = _cold_and_warm(bench, s3, url, key, repeats)
                except SlowError as slow:
                    report.note(f"Left out from S3: {name_of(key)}: {slow} (one epoch).")
                    continue
                for place, run, sent in found:
                    rates[place][key] = run.rate(0)
                    _add_remote(report, f"{place}_{name_of(key)}", key, run, sent)
    for place, values in rates.items():
        add_claims(report, place, values)


def _cold_and_warm(
    bench: Bench, s3: Server, url: str, key: Key, repeats: int
) -> list[tuple[str, Run, float]]:
    """(cold or warm, runs of one epoch each as one, bytes sent for one of them)."""
    runs: dict[str, list[tuple[Run, int]]] = {"s3_cold": [], "s3_warm": []}
    for _ in range(repeats):
        job = bench.job(*key, data=url, endpoint=s3.endpoint)
        for place in runs:
            runs[place].append(_run_counted(bench, s3, job))
        bench.drop_caches()
    return [
        (place, _joined([run for run, _ in each]), statistics.median(sent for _, sent in each))
        for place, each in runs.items()
    ]


def _run_counted(bench: Bench, s3: Server, job: Job) -> tuple[Run, int]:
    before = s3.sent_bytes()
    Path(job.cache).mkdir(parents=True, exist_ok=True)
    run = bench.run(job, **s3.environment)
    return run, s3.sent_bytes() - before


def _joined(runs: list[Run]) -> Run:
    return Run(
        [rows for run in runs for rows in run.rows],
        [seconds for run in runs for seconds in run.seconds],
        [first for run in runs for first in run.first_batch],
        [seconds for run in runs for seconds in run.core_seconds],
        max(run.resident_bytes for run in runs),
        max(run.own_bytes for run in runs),
    )


def _add_remote(report: harness.Report, name: str, key: Key, run: Run, sent: float) -> None:
    ours, cold = key[0] in (OURS, OURS_RAY), "cold" in name
    limit = (5 if cold else 0.5) if ours else None
    report.add(f"{name}_rows_per_second", run.rate(0), "rows/s")
    report.add(f"{name}_first_batch_seconds", run.first(0), "s", at_most=limit)
    report.add(f"{name}_sent_bytes", sent, "B")


def main() -> None:
    options = harness.options(__doc__, Options)
    rows = options.rows or (16_384 if options.quick else 128_000)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        bench = Bench(Path(scratch), rows, options.peers_venv, options.limit)
        report = harness.Report("stream_peers", options, packages=("torch", "ray", "pyarrow"))
        bench.write(written(options))
        if "local" in options.places:
            local(report, bench, options)
        if "s3" in options.places:
            remote(report, bench, options)
        found = ", ".join(f"{name} {number}" for name, number in bench.versions().items())
    report.note(
        f"{rows} grids of 1024 tokens, 391 codes; batches of 1024. The peers ran on {found}."
    )
    report.note(
        "Ids are handed over in the 16 bits in which all contenders hold them (32 from Ray's"
        " read_parquet, which widens them itself): a trainer widens them on its device."
    )
    report.note(
        "Rates are of whole epochs, the wait for the first batch included: from local disk the"
        " median of the second epoch and later ones in one process, from S3 of single epochs in"
        " fresh processes. First batches are counted from building the loader, libraries imported"
        " and Ray running. A core second is one of processor time, over all threads of the process."
    )
    report.note(
        f"Ray had {PROCESSES} CPUs for either contender. WebDataset shuffles shards and a buffer of"
        " 1000 rows, LitData chunks and rows within blocks of 256, read_parquet files and a buffer"
        " of 8192 rows, Mosaic all rows within blocks of shards; ours mixes 16 shards of 8192."
    )
    report.note(
        "Memory is the largest sum over a process and its children, sampled four times a second:"
        " resident counts pages of files that are mapped, and shared pages in each process; own"
        " counts anonymous and shared memory once, and no pages of files."
    )
    report.finish()


if __name__ == "__main__":
    main()
