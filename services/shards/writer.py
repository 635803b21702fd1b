"""Rows -> shard files and the manifest entries that name them.

A file is named by its contents, so a task that runs twice writes the same file twice, and a
shard that no manifest names harms nobody (`orphans.py` finds it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from services.errors import InvalidInputError
from services.shards import codec, layout
from services.shards.coefficient_stats import add_stats
from services.shards.grid_hashes import (
    KIND,
    PICTURES,
    HashArray,
    count_duplicates,
    hash_grids,
    put_hashes,
)
from services.shards.labels import pack_counts
from services.shards.store import Store
from services.shards.validate import check_name, check_spec
from services.types import IntArray, TokenRows
from services.wire.seit import v1 as wire

DEFAULT_SHARD_ROWS = 8192  # 8 MB of 32 x 32 grids: one request, 122,000 shards for 1e9 rows

_NAME_DIGITS = 16


@dataclass(frozen=True)
class ShardResult:
    """A written shard, and what the manifest keeps of its split.

    shard: its manifest entry. code_counts: (K,) int64, how often it holds each code.
    grid_hashes: (N,) uint64, hash of each row's grid (`grid_hashes.hash_grids`).
    picture_hashes: (N,) uint64, of each row's picture (`grid_hashes.hash_picture`), where the
        pictures are at hand.
    coefficients: counts over its rows, where they have any.
    """

    shard: wire.Shard
    code_counts: IntArray
    grid_hashes: HashArray
    picture_hashes: HashArray | None = None
    coefficients: wire.CoefficientStats | None = None


def write_shard(
    root: Store,
    dataset: str,
    split: str,
    rows: TokenRows,
    spec: wire.TokenSpec,
    compression_level: int = layout.DEFAULT_COMPRESSION_LEVEL,
) -> ShardResult:
    """Write one shard below ROOT/DATASET/shards. Thread-safe; a repeat writes the same file.

    compression_level: of zstd, 1 to 19; higher is smaller, where tokens repeat, and slower.
    Raises InvalidInputError for names or rows that do not fit the spec (see
    `layout.to_parquet`) and StoreError where the storage refuses.
    """
    check_spec(spec)
    check_name(split, "split")
    if len(rows) and rows.source_bytes.min() < 0:
        raise InvalidInputError(
            f"source_bytes {rows.source_bytes.min()} is negative: give the image file's size, or "
            "0 where it is not known"
        )
    data = layout.to_parquet(rows, spec, compression_level)
    digest = xxhash.xxh3_128_hexdigest(data)
    path = f"shards/{split}-{digest[:_NAME_DIGITS]}.parquet"
    root.child(check_name(dataset)).write(path, data)
    labels, counts = np.unique(rows.labels, return_counts=True)
    shard = wire.Shard(
        path=path,
        rows=len(rows),
        bytes=len(data),
        xxh3=digest,
        source_bytes=int(rows.source_bytes.sum()),
        labels=pack_counts(labels, counts),
    )
    return ShardResult(shard, codec.count_codes(rows.ids, spec.codes), hash_grids(rows.ids))


def build_split(
    root: Store, dataset: str, name: str, results: Sequence[ShardResult], codes: int
) -> wire.Split:
    """The manifest entry of a split whose rows stand in these shards, in this order.

    Writes the hashes of its grids, and of its pictures, below ROOT/DATASET/assets.
    """
    check_name(dataset)
    counts = np.zeros(codes, np.int64)
    for result in results:
        counts += result.code_counts
    pictures = [one.picture_hashes for one in results if one.picture_hashes is not None]
    split = wire.Split(
        name=check_name(name, "split"),
        shards=[result.shard for result in results],
        code_counts=counts.tolist(),
    )
    split.grid_hashes, split.duplicate_rows = _hashed(
        root, dataset, [one.grid_hashes for one in results], KIND
    )
    if len(pictures) == len(results):
        split.picture_hashes, split.duplicate_pictures = _hashed(root, dataset, pictures, PICTURES)
    split.coefficients = add_stats([result.coefficients for result in results])
    return split


def _hashed(
    root: Store, dataset: str, parts: Sequence[HashArray], kind: str
) -> tuple[list[wire.Asset], int]:
    """The files of a split's hashes, which are written here, and how many rows repeat one."""
    hashes = np.concatenate([np.zeros(0, np.uint64), *parts])
    hashes.sort()
    return put_hashes(root, dataset, hashes, kind), count_duplicates(hashes)


class ShardWriter:
    """Cuts a stream of rows into shards of `shard_rows`; holds at most one shard in memory.

    Used as a context manager it writes the rest at a clean end. After an error nothing more is
    written; the shards that stand already are named by no manifest.
    """

    def __init__(
        self,
        root: Store,
        dataset: str,
        split: str,
        spec: wire.TokenSpec,
        shard_rows: int = DEFAULT_SHARD_ROWS,
        compression_level: int = layout.DEFAULT_COMPRESSION_LEVEL,
    ) -> None:
        limit = layout.MAX_COLUMN_BYTES // (spec.grid_height * spec.grid_width)
        if not 1 <= shard_rows <= limit:
            raise InvalidInputError(
                f"shard_rows is {shard_rows}, valid are 1 to {limit} for this grid: a shard is "
                f"one file that is read whole; {DEFAULT_SHARD_ROWS} suits most data"
            )
        self._target = root, dataset, split
        self._spec = spec
        self._shard_rows = shard_rows
        self._compression_level = layout.check_compression_level(compression_level)
        self._pending: list[TokenRows] = []
        self._pending_rows = 0
        self.results: list[ShardResult] = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()

    def add(self, rows: TokenRows) -> None:
        """Take rows of any number; whole shards are written at once. Errors as `write_shard`."""
        start = 0
        while start < len(rows):
            stop = min(len(rows), start + self._shard_rows - self._pending_rows)
            self._pending.append(_cut(rows, start, stop))
            self._pending_rows += stop - start
            start = stop
            if self._pending_rows == self._shard_rows:
                self._flush()

    def close(self) -> None:
        """Write the last, shorter shard if rows are left."""
        if self._pending:
            self._flush()

    def _flush(self) -> None:
        rows = _join(self._pending)
        self._pending, self._pending_rows = [], 0
        result = write_shard(*self._target, rows, self._spec, self._compression_level)
        self.results.append(result)


def _cut(rows: TokenRows, start: int, stop: int) -> TokenRows:
    part = slice(start, stop)
    return TokenRows(rows.ids[part], rows.labels[part], rows.keys[part], rows.source_bytes[part])


def _join(parts: Sequence[TokenRows]) -> TokenRows:
    return TokenRows(
        ids=np.concatenate([part.ids for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        keys=[key for part in parts for key in part.keys],
        source_bytes=np.concatenate([part.source_bytes for part in parts]),
    )
