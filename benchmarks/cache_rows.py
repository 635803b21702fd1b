"""Random rows of a cached shard: at least 1,000,000 rows/s in one process; few rows cost few.

A shard of 32 x 32 grids of 391 codes stands in the node's cache. Batches of its rows, in the order
of a shuffled epoch, are gathered from it and compared, in the same run, with decoding the Parquet
shard for each batch, which is what a reader without the cache does.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import harness
import numpy as np

from services.shards import layout
from services.shards.cache import ShardCache
from services.shards.entry import CachedShard
from services.shards.store import open_store
from services.shards.writer import DEFAULT_SHARD_ROWS, write_shard
from services.types import TokenRows
from services.wire.seit import v1 as wire

SPEC = wire.TokenSpec(
    grid_height=32, grid_width=32, codes=391, channels=32, image_height=256, image_width=256
)
BATCH_ROWS = 256
FEW_ROWS = 8


def draw(rows: int) -> TokenRows:
    """Rows whose code shares are gamma(0.75) draws, the same in each run."""
    rng = np.random.default_rng(1)
    share = rng.gamma(0.75, size=SPEC.codes)
    shape = rows, SPEC.grid_height, SPEC.grid_width
    return TokenRows(
        ids=rng.choice(SPEC.codes, shape, p=share / share.sum()).astype(np.uint16),
        labels=rng.integers(0, 1000, rows),
        keys=[f"{row:08d}" for row in range(rows)],
        source_bytes=rng.integers(20_000, 200_000, rows),
    )


def gather_rate(shard: CachedShard, batch: int, repeats: int) -> float:
    """Rows/s of gathers of `batch` rows over one shuffled epoch of the shard."""
    order = np.random.default_rng(2).permutation(len(shard))
    batches = np.split(order, range(batch, len(order), batch))

    def epoch() -> None:
        for index in batches:
            shard.take(index)

    epoch()  # every page is in memory from here on
    return len(order) / harness.median_seconds(epoch, repeats)


def main() -> None:
    options = harness.options(__doc__, harness.Options)
    report = harness.Report("cache_rows", options, packages=("numpy", "pyarrow"))
    rows = 2048 if options.quick else DEFAULT_SHARD_ROWS
    repeats = 5 if options.quick else 15
    with tempfile.TemporaryDirectory() as scratch:
        store = open_store(scratch)
        written = draw(rows)
        entry = write_shard(store, "ds", "train", written, SPEC).shard
        path = Path(scratch) / "ds" / entry.path
        cache = ShardCache(Path(scratch) / "cache", 1 << 30)
        opened = cache.rows(store, "ds", entry, SPEC)
        index = np.random.default_rng(3).integers(0, rows, BATCH_ROWS)

        def decode_and_take() -> None:
            layout.from_parquet(path, SPEC).ids[index].copy()

        if not np.array_equal(opened.take(index)[0], written.ids[index]):
            raise AssertionError("the cache gave other rows than were written")
        peer = BATCH_ROWS / harness.median_seconds(decode_and_take, repeats)
        rate = gather_rate(opened, BATCH_ROWS, repeats)
        few = gather_rate(opened, FEW_ROWS, repeats)
        whole = gather_rate(opened, rows, repeats)
        some = index[:FEW_ROWS]
        few_seconds = harness.median_seconds(lambda: opened.take(some), 101)
        decode_seconds = harness.median_seconds(
            lambda: layout.from_parquet(path, SPEC).ids[some].copy(), repeats
        )
        looked_up = harness.median_seconds(
            lambda: [cache.rows(store, "ds", entry, SPEC) for _ in range(1000)], repeats
        )
        first = harness.median_seconds(
            lambda: ShardCache(Path(scratch) / "cache", 1 << 30).rows(store, "ds", entry, SPEC),
            repeats,
        )
    report.add("rows_per_second", rate, "1/s", peer=peer, at_least=1_000_000)
    report.add("rows_per_second_whole_shard", whole, "1/s")
    report.add(f"rows_per_second_batches_of_{FEW_ROWS}", few, "1/s")
    report.add(f"take_{FEW_ROWS}_rows_seconds", few_seconds, "s", peer=decode_seconds)
    report.add(f"take_{FEW_ROWS}_rows_over_decode", few_seconds / decode_seconds, "1", at_most=0.01)
    report.add("lookup_seconds", looked_up / 1000, "s")
    report.add("first_open_seconds", first, "s")
    report.note(
        f"{rows} rows of {SPEC.grid_height * SPEC.grid_width} tokens; batches of {BATCH_ROWS}"
        " shuffled rows to uint16 ids and labels of their own. The peer decodes the Parquet file,"
        " which the system holds in its page cache, for each batch of that size."
    )
    report.note(
        "lookup is what each later use of a shard costs a process; first_open includes the"
        " checksum of the whole entry, once a process."
    )
    report.finish()


if __name__ == "__main__":
    main()
