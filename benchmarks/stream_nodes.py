"""From 1 to 4 Ray nodes: a cold epoch reads the dataset once over the whole cluster, at most 1.05
times its bytes, and each row reaches exactly one trainer. From 10^5 to 10^9 rows: standing at a
step costs about the same.

Nodes are real ones, on 127.0.0.2 and up, each with a cache folder of its own and one trainer that
asks for its rank's share of every step. Storage is an S3 server on loopback that counts what it
sends. All nodes share this machine's cores, so rows/s say what the spread costs, not what it gains.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np
from peers import data, nodes, seit
from peers.job import Job
from peers.storage import Server, server

from services.plan.epoch import OrderSpec, Plan
from services.shards.writer import DEFAULT_SHARD_ROWS

PLAN_ROWS = (10**5, 10**6, 10**7, 10**8, 10**9)


@dataclass(frozen=True)
class Options(harness.Options):
    """Flags."""

    rows: int = 0
    """Rows of the dataset; 0 takes 128,000, or 16,384 in a quick run."""
    scratch: Path | None = None
    """Folder for data and caches, which need 1 GB; default: a temporary one."""


def stored_bytes(folder: Path) -> int:
    """Bytes of the shards, which is what an epoch has to read."""
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def cold_epoch(folder: Path, s3: Server, job: Job, count: int) -> tuple[float, int]:
    """(seconds, bytes that storage sent) of one epoch on `count` nodes with empty caches."""
    with nodes.cluster(folder, count, s3.environment) as cluster:
        told = cluster.drive("peers.node_trainers", job, count)
    return float(told["seconds"][0]), int(told["sent"][0])


def plans(report: harness.Report, quick: bool) -> None:
    """Time and memory to stand at a step, as the number of rows grows."""
    for rows in PLAN_ROWS:
        shard_rows = np.full(-(-rows // DEFAULT_SHARD_ROWS), DEFAULT_SHARD_ROWS)
        order = OrderSpec(0, 4096, seit.BLOCK_ROWS, Job.lanes, Job.window)
        seconds = []
        for repeat in range(3 if quick else 9):
            began = time.perf_counter()
            Plan(shard_rows, order).step_spans((repeat + 1) * 104_729_003)
            seconds.append(time.perf_counter() - began)
        tracemalloc.start()
        Plan(shard_rows, order).step_spans(7)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        name = f"plan_1e{len(str(rows)) - 1}_rows"
        report.add(f"{name}_seconds", statistics.median(seconds), "s", at_most=0.1)
        report.add(f"{name}_peak_bytes", peak, "B", at_most=50e6)


def main() -> None:
    options = harness.options(__doc__, Options)
    rows = options.rows or (16_384 if options.quick else 128_000)
    counts = (1, 2) if options.quick else (1, 2, 4)
    repeats = 1 if options.quick else 3
    report = harness.Report("stream_nodes", options, packages=("ray", "torch", "numpy"))
    plans(report, options.quick)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch, server() as s3:
        folder = Path(scratch)
        data.draw(rows, folder / "raw")
        ids, labels = np.load(folder / "raw" / "ids.npy"), np.load(folder / "raw" / "labels.npy")
        # As many shards as in the full run, so that every lane has some.
        seit.write(ids, labels, folder / "root", shard_rows=-(-rows // 16))
        job = Job(
            "seit", "stream", s3.upload(folder / "root", "data"), "", cache="cache", rows=rows
        )
        whole = stored_bytes(folder / "root")
        report.add("dataset_bytes", whole, "B")
        for count in counts:
            runs = [
                cold_epoch(folder / f"nodes-{count}-{repeat}", s3, job, count)
                for repeat in range(repeats)
            ]
            seconds, sent = zip(*runs, strict=True)
            most: Any = max(sent)
            report.add(f"nodes_{count}_read_of_dataset", most / whole, "x", at_most=1.05)
            rate = rows / statistics.median(seconds)
            report.add(f"nodes_{count}_rows_per_second", rate, "rows/s")
    report.note(
        f"{rows} grids of 1024 tokens in 16 shards, batches of 1024 over all trainers. Bytes are"
        " what the server sent from the first trainer's start to the last one's end, manifests"
        " included, the largest of the runs."
    )
    report.finish()


if __name__ == "__main__":
    main()
