"""Small datasets with added columns, and readers of all their values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from services.shards.cache import ShardCache
from services.shards.columns import add_column
from services.shards.manifest import (
    LoadedManifest,
    commit,
    extend,
    load_manifest,
)
from services.shards.reader import DatasetReader
from services.shards.store import Store
from services.shards.writer import build_split, write_shard
from services.types import TokenRows
from tests.small_datasets import SPEC, write_dataset


def keys_of(root: Store, split: str, cache: Path, dataset: str = "digits") -> list[str]:
    reader = DatasetReader(root, dataset, split=split, cache=ShardCache(cache, 1 << 30))
    return [key for rows in reader.iter_rows() for key in rows.keys]


def values_file(path: Path, keys: Sequence[str], values: Sequence[Any], kind: Any = None) -> Path:
    """In an order of its own, with row groups and pages of its own."""
    order = np.random.default_rng(len(keys)).permutation(len(keys))
    table = pa.table(
        {
            "key": pa.array([keys[row] for row in order], pa.string()),
            "value": pa.array([values[row] for row in order], kind),
        }
    )
    pq.write_table(table, path, row_group_size=7, compression="zstd")
    return path


def append_two_rows(root: Store) -> None:
    """The rows "new/0" and "new/1" at the end of train."""
    ids = np.zeros((2, SPEC.grid_height, SPEC.grid_width), np.uint16)
    zeros = np.zeros(2, np.int64)
    result = write_shard(
        root, "digits", "train", TokenRows(ids, zeros, ["new/0", "new/1"], zeros), SPEC
    )
    split = build_split(root, "digits", "train", [result], SPEC.codes)
    commit(root, extend(root, load_manifest(root, "digits"), [split], "more"))


def read_all(root: Store, split: str, name: str, cache: Path, dataset: str = "digits") -> Any:
    reader = DatasetReader(root, dataset, split=split, cache=ShardCache(cache, 1 << 30))
    shards = np.repeat(np.arange(len(reader.shard_rows)), reader.shard_rows)
    rows = np.concatenate([np.arange(count) for count in reader.shard_rows])
    found = reader.column(name, shards, rows)
    # In another order, with repeats and rows that do not exist, the same values come.
    pick = np.random.default_rng(1).integers(-1, len(shards), 40)
    some = reader.column(name, np.where(pick < 0, -1, shards[pick]), rows[pick])
    blank = {"string": "", "binary": b""}.get(reader.column_types[name], 0)
    assert list(some) == [found[at] if at >= 0 else blank for at in pick]
    return found


def prepared(root: Store, tmp_path: Path) -> tuple[list[str], list[int]]:
    write_dataset(root)
    keys = keys_of(root, "train", tmp_path / "keys") + keys_of(
        root, "validation", tmp_path / "keys"
    )
    return keys, list(range(len(keys)))


def with_column(root: Store, tmp_path: Path) -> LoadedManifest:
    keys, _ = prepared(root, tmp_path)
    values = [key.encode() * 20 for key in keys]
    return add_column(root, "digits", "mask", values_file(tmp_path / "v.parquet", keys, values))
