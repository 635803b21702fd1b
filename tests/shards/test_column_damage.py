"""Manifests and files of columns that are wrong, and what a diff tells of right ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.errors import (
    FormatError,
    IntegrityError,
    SeitError,
)
from services.shards.cache import ShardCache
from services.shards.diff import diff_manifests
from services.shards.manifest import (
    commit,
    dump_manifest,
    load_manifest,
    parse_manifest,
)
from services.shards.reader import DatasetReader
from services.shards.store import Store
from services.shards.verify import verify_dataset
from services.wire.seit import v1 as wire
from tests.shards.column_values import (
    with_column,
)


def changed(manifest: wire.Manifest, number: int, **changes: object) -> wire.Manifest:
    split = manifest.splits[0]
    shards = list(split.shards)
    column = replace(shards[number].columns[0], **changes)
    shards[number] = replace(shards[number], columns=[column])
    return replace(manifest, splits=[replace(split, shards=shards), *manifest.splits[1:]])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": "columns/../../secret"}, "could name a file outside"),
        ({"path": "/etc/passwd"}, "could name a file outside"),
        ({"path": "shards/x.parquet"}, "not below 'columns/'"),
        ({"path": "columns\\x"}, "backslash"),
        ({"name": "../a"}, "column name"),
        ({"type": "pickle"}, "valid are int32"),
        ({"type": "string"}, "the same in each shard"),
        ({"rows": 4}, "has 4 rows, the shard 5"),
        ({"rows": 0}, "rows is 0"),
        ({"bytes": 0}, "bytes is 0"),
        ({"xxh3": "abc"}, "hexadecimal"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(
    root: Store, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    manifest = with_column(root, tmp_path).manifest
    with pytest.raises(FormatError, match=words):
        parse_manifest(dump_manifest(changed(manifest, 1, **change)))


def test_parts_that_do_not_stand_together_are_refused(root: Store, tmp_path: Path) -> None:
    manifest = with_column(root, tmp_path).manifest
    shard = manifest.splits[0].shards[0]
    (column,) = shard.columns
    first, second = replace(column, rows=2), replace(column, rows=3)
    shard.columns = [first, replace(column, name="other"), second]
    with pytest.raises(FormatError, match="do not stand together"):
        parse_manifest(dump_manifest(manifest))


def test_the_file_of_another_shard_is_noticed_wherever_it_is_read(
    root: Store, tmp_path: Path
) -> None:
    """Same name, type and number of rows: only the file itself tells whose it is."""
    manifest = with_column(root, tmp_path).manifest
    other = manifest.splits[0].shards[0].columns[0]
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    reader = DatasetReader(root, "digits", split="train", cache=cache)
    reader.column("mask", np.array([0]), np.array([0]))  # the cache has it, for its own shard
    liar = changed(manifest, 1, path=other.path, bytes=other.bytes, xxh3=other.xxh3)
    commit(root, replace(liar, parent=""))
    reader = DatasetReader(root, "digits", split="train", cache=cache)
    with pytest.raises(FormatError, match="belongs to other rows"):
        reader.column("mask", np.array([1]), np.array([0]))
    failures = [check for check in verify_dataset(root, "digits") if check.failure]
    assert [check.name for check in failures] == [other.path]


def test_a_truncated_file_is_fetched_again_and_then_given_up(root: Store, tmp_path: Path) -> None:
    manifest = with_column(root, tmp_path).manifest
    path = f"digits/{manifest.splits[0].shards[1].columns[0].path}"
    root.write(path, root.read(path)[:-1])
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    reader = DatasetReader(root, "digits", split="train", cache=cache)
    with pytest.raises(IntegrityError, match="fetched 3 times"):
        reader.column("mask", np.array([1]), np.array([0]))
    assert (cache.counters.quarantined, cache.counters.refetches) == (1, 2)
    failures = [check.name for check in verify_dataset(root, "digits") if check.failure]
    assert [f"digits/{name}" for name in failures] == [path]


def test_a_diff_tells_of_columns(root: Store, tmp_path: Path) -> None:
    second = with_column(root, tmp_path).manifest
    first = load_manifest(root, "digits", 1).manifest
    diff = diff_manifests(first, second)
    assert not diff.same_content
    assert [(one.name, one.before) for one in diff.columns] == [
        ("train/mask", "none"),
        ("validation/mask", "none"),
    ]
    assert diff.columns[0].after.startswith("binary in 3 of 3 shards, ")
    assert all(split.added.shards == split.moved == 0 for split in diff.splits)
    assert diff_manifests(second, second).same_content


def test_rows_out_of_range_are_refused(root: Store, tmp_path: Path) -> None:
    with_column(root, tmp_path)
    reader = DatasetReader(root, "digits", split="train", cache=ShardCache(tmp_path / "c", 1 << 30))
    for shards, rows in (([0], [5]), ([0], [-1]), ([3], [0]), ([-2], [0])):
        with pytest.raises(SeitError):
            reader.column("mask", np.array(shards), np.array(rows))
    assert len(reader.column("mask", np.array([], np.int64), np.array([], np.int64))) == 0
