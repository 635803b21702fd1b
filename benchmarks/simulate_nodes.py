"""What `seit simulate` says of storage, against real Ray nodes: bytes of each of three epochs
within 15 % of the dataset, on 1 and 2 nodes, with a cache for half of a node's part or all of it.

Nodes are real ones with a cache folder each (benchmarks/stream_nodes.py); storage is an S3 server
on loopback that counts what it sends. Bytes of epoch k are those of k + 1 epochs less those of k,
each run with empty caches.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import harness
import numpy as np
from peers import data, nodes, seit
from peers.job import Job
from peers.storage import Server, server

from services.plan.epoch import OrderSpec
from services.plan.simulate import Rates, Scenario, simulate

_BESIDE_IDS = 48  # label, size, offset and key of a row in the cache
_TOKENS = 1024


@dataclass(frozen=True)
class Options(harness.Options):
    """Flags."""

    rows: int = 0
    """Rows of the dataset; 0 takes 131,072, or 65,536 in a quick run."""
    scratch: Path | None = None
    """Folder for data and caches, which need 3 GB; default: a temporary one."""


def sent_bytes(folder: Path, s3: Server, job: Job, count: int) -> int:
    """Bytes that storage sent for a run of `job.epochs` on `count` nodes with empty caches."""
    with nodes.cluster(folder, count, s3.environment) as cluster:
        before = s3.sent_bytes()
        told = cluster.drive("peers.node_trainers", job, count)
        sent = s3.sent_bytes() - before
    if sorted(told["rows"]) != sorted(list(range(job.rows)) * job.epochs):
        raise AssertionError(f"{count} nodes gave {len(told['rows'])} rows")
    return sent


def main() -> None:
    options = harness.options(__doc__, Options)
    rows = options.rows or (65_536 if options.quick else 131_072)
    shard_rows = rows // 256
    report = harness.Report("simulate_nodes", options, packages=("ray", "numpy"))
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch, server() as s3:
        folder = Path(scratch)
        data.draw(rows, folder / "raw")
        ids, labels = np.load(folder / "raw" / "ids.npy"), np.load(folder / "raw" / "labels.npy")
        seit.write(ids, labels, folder / "root", shard_rows=shard_rows)
        stored = sum(path.stat().st_size for path in (folder / "root").rglob("*.parquet"))
        cached = rows * (2 * _TOKENS + _BESIDE_IDS)
        base = Job("seit", "stream", s3.upload(folder / "root", "data"), "", cache="cache",
                   rows=rows, window=1)  # fmt: skip
        for count in (1,) if options.quick else (1, 2):
            for share in (0.5,) if options.quick else (0.5, 1.5):
                job = replace(base, cache_bytes=int(cached * share / count))
                order = OrderSpec(0, job.batch, seit.BLOCK_ROWS, seit.LANES, job.window)
                scenario = Scenario(
                    rows=rows,
                    shard_rows=shard_rows,
                    nodes=count,
                    gpus=count,
                    cache_bytes=job.cache_bytes,
                    order=order,
                    gpu_rows=1,
                    cached_bytes=cached / rows,
                    rates=Rates(stored_bytes=stored / rows),
                )
                said = simulate(scenario).epochs
                before = 0
                for epoch in range(2 if options.quick else 3):
                    name = f"nodes_{count}_cache_{share:g}_epoch_{epoch}"
                    run = replace(job, epochs=epoch + 1)
                    sent = sent_bytes(folder / name, s3, run, count)
                    report.add(f"{name}_simulated", said[epoch].bytes / stored, "of dataset")
                    report.add(f"{name}_real", (sent - before) / stored, "of dataset")
                    off = abs(sent - before - said[epoch].bytes) / stored
                    report.add(f"{name}_off", off, "of dataset", at_most=0.15)
                    before = sent
    report.note(f"{rows} grids of {_TOKENS} tokens in 256 shards, 8 lanes, windows of one shard.")
    report.finish()


if __name__ == "__main__":
    main()
