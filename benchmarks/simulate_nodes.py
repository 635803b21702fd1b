"""What `seit simulate` says of storage, against real Ray nodes: bytes of each of three epochs
within 15 % of the dataset, on 1 to 4 nodes, with a cache for half of a node's part, or all of it.

Nodes are real ones with a cache folder each (benchmarks/stream_nodes.py); storage is an S3 server
on loopback that counts what it sends. An epoch's bytes are those that were sent while its rows were
waited for, what was fetched ahead for the next one included.
"""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import harness
import numpy as np
from peers import data, nodes, seit
from peers.job import Job
from peers.storage import server

from services.plan.epoch import OrderSpec
from services.plan.simulate import Rates, Scenario, simulate

SIDE = 16  # of a grid: 256 tokens a row, so that a million rows are 0.3 GB
EPOCHS = 3
BATCH, LANES = 1536, 12  # 12 blocks, which 1, 2, 3 and 4 nodes can share out
SHARDS = 256
_BESIDE_IDS = 48  # label, size, offset and key of a row in the cache


@dataclass(frozen=True)
class Options(harness.Options):
    """Flags."""

    rows: int = 0
    """Rows of the dataset, a multiple of 1,024; 0 takes 1,048,576, or 262,144 in a quick run."""
    scratch: Path | None = None
    """Folder for data and caches, which need 4 GB; default: a temporary one."""


def main() -> None:
    options = harness.options(__doc__, Options)
    rows = options.rows or (262_144 if options.quick else 1_048_576)
    report = harness.Report("simulate_nodes", options, packages=("ray", "numpy"))
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch, server() as s3:
        folder = Path(scratch)
        pieces = (data.GRID // SIDE) ** 2
        data.draw(rows // pieces, folder / "raw")
        ids = np.load(folder / "raw" / "ids.npy").reshape(rows, SIDE, SIDE)
        labels = np.repeat(np.load(folder / "raw" / "labels.npy"), pieces)
        seit.write(ids, labels, folder / "root", shard_rows=rows // SHARDS)
        del ids, labels
        stored = sum(path.stat().st_size for path in (folder / "root").rglob("*.parquet"))
        url = s3.upload(folder / "root", "data")
        row_bytes = 2 * SIDE * SIDE + _BESIDE_IDS
        for count, share in itertools.product((1,) if options.quick else (1, 2, 3, 4), (0.5, 1.5)):
            limit = int(rows * row_bytes * share / count)
            job = Job("seit", "stream", url, "", cache="cache", cache_bytes=limit, rows=rows,
                      batch=BATCH, lanes=LANES, window=1, crop=SIDE - 2, epochs=EPOCHS)  # fmt: skip
            said = simulate(
                Scenario(
                    rows=rows,
                    shard_rows=rows // SHARDS,
                    nodes=count,
                    gpus=count,
                    cache_bytes=limit,
                    order=OrderSpec(0, BATCH, seit.BLOCK_ROWS, LANES, job.window),
                    gpu_rows=1,
                    cached_bytes=row_bytes,
                    rates=Rates(stored_bytes=stored / rows),
                )
            ).epochs
            name = f"nodes_{count}_cache_{share:g}"
            with nodes.cluster(folder / name, count, s3.environment) as cluster:
                sent = cluster.drive("peers.node_trainers", job, count)["sent"]
            real = np.diff(sent, prepend=0) / stored
            for epoch, (found, told) in enumerate(zip(real.tolist(), said, strict=True)):
                simulated = told.bytes / stored
                at = f"{name}_epoch_{epoch}"
                report.add(f"{at}_simulated", simulated, "of dataset")
                report.add(f"{at}_real", found, "of dataset")
                report.add(f"{at}_off", abs(found - simulated), "of dataset", at_most=0.15)
    report.note(
        f"{rows} grids of {SIDE * SIDE} tokens in {SHARDS} shards, {LANES} lanes, windows of one"
        " shard, one trainer a node. The cache is a share of what all rows take, divided by the"
        " nodes."
    )
    report.finish()


if __name__ == "__main__":
    main()
