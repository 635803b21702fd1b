"""Columns beside the shards: what goes in comes out, and nothing that does not fit goes in."""

from __future__ import annotations

import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import (
    CommitConflictError,
    InvalidInputError,
    NotFoundError,
)
from services.shards import columns
from services.shards.cache import ShardCache
from services.shards.column_file import arrow_type
from services.shards.column_input import GIVEN_TYPES
from services.shards.columns import add_column, drop_column
from services.shards.manifest import (
    commit,
    extend,
    list_versions,
    load_manifest,
    named_files,
)
from services.shards.orphans import find_orphans
from services.shards.reader import DatasetReader
from services.shards.store import Store, open_store
from services.shards.verify import verify_dataset
from services.stats.report import storage_report
from tests.shards.column_values import (
    append_two_rows,
    keys_of,
    prepared,
    read_all,
    values_file,
)
from tests.small_datasets import write_dataset

VALUES: dict[str, Any] = {
    "int32": [-(2**31), 0, 2**31 - 1],
    "int64": [-(2**63), 7, 2**63 - 1],
    "float32": [0.5, -1.25, 3e38],
    "float64": [0.1, -1e300, 2.0],
    "string": ["", "é\0", "mask"],
    "binary": [b"", b"\0\0", b"\xff\0"],
}


@pytest.mark.parametrize("kind", GIVEN_TYPES)
def test_each_type_goes_round(root: Store, tmp_path: Path, kind: str) -> None:
    before = write_dataset(root, shards=3, rows=5)
    keys = keys_of(root, "train", tmp_path / "a") + keys_of(root, "validation", tmp_path / "a")
    values = [VALUES[kind][row % 3] for row in range(17)]
    file = values_file(tmp_path / "v.parquet", keys, values, arrow_type(kind))
    done = add_column(root, "digits", "extra", file)
    assert done.manifest.version == 2
    for old, new in zip(before.manifest.splits, done.manifest.splits, strict=True):
        assert [replace(shard, columns=[]) for shard in new.shards] == old.shards
    found = read_all(root, "train", "extra", tmp_path / "b")
    if kind not in ("string", "binary"):
        assert found.dtype == np.dtype(kind)
        values = np.array(values, kind).tolist()
        found = found.tolist()
    assert found == values[:15]
    assert list(read_all(root, "validation", "extra", tmp_path / "b")) == values[15:]
    assert all(check.failure is None for check in verify_dataset(root, "digits"))
    total = storage_report(done.manifest).total
    assert total is not None
    stored = sum(entry.bytes for entry in root.scan("digits/columns"))
    assert total.column_bytes == stored > 0


def test_a_column_stands_on_every_store(store: Store, tmp_path: Path) -> None:
    write_dataset(store)
    keys = keys_of(store, "train", tmp_path / "a")
    values = [key.encode()[::-1] for key in keys]
    file = values_file(tmp_path / "v.parquet", keys, values)
    done = add_column(store, "digits", "mask", file, splits=["train"])
    assert read_all(store, "train", "mask", tmp_path / "b") == values
    assert {check.failure for check in verify_dataset(store, "digits")} == {None}
    paths = [c.path for shard in done.manifest.splits[0].shards for c in shard.columns]
    assert set(paths) <= named_files(done.manifest)
    assert find_orphans(store, "digits", min_age_seconds=-10) == []
    with pytest.raises(NotFoundError, match="has no column 'mask'; there are: none"):
        read_all(store, "validation", "mask", tmp_path / "b")

    dropped = drop_column(store, "digits", "mask")
    assert dropped.manifest.splits == load_manifest(store, "digits", 1).manifest.splits
    assert find_orphans(store, "digits", min_age_seconds=-10) == []  # version 2 names them
    with pytest.raises(NotFoundError, match="no column 'mask' in train, validation"):
        drop_column(store, "digits", "mask")
    store.delete("digits/versions/00000002.json")
    left = [entry.path for entry in find_orphans(store, "digits", min_age_seconds=-10)]
    assert sorted(left) == sorted(paths)


@settings(deadline=None, max_examples=15)
@given(
    sizes=st.lists(st.integers(0, 60), min_size=12, max_size=12),
    limit=st.integers(70, 200),
    shards=st.integers(1, 3),
)
def test_large_values_are_cut_into_parts_at_any_size(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int, shards: int
) -> None:
    """A part never holds more than the limit but for one row, and no row is lost."""
    folder = tmp_path_factory.mktemp("cut")
    root = open_store(f"memory://{uuid.uuid4().hex}")
    write_dataset(root, shards=shards, rows=4)
    keys = keys_of(root, "train", folder / "a")
    values = [bytes([row]) * sizes[row] for row in range(len(keys))]
    file = values_file(folder / "v.parquet", keys, values, pa.large_binary())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "PART_BYTES", limit)
        done = add_column(root, "digits", "mask", file, splits=["train"])
    assert read_all(root, "train", "mask", folder / "b") == values
    for number, shard in enumerate(done.manifest.splits[0].shards):
        start = 4 * number
        for column in shard.columns:
            part = sizes[start : start + column.rows]
            assert sum(part) + 8 * len(part) <= limit
            start += column.rows
        assert start == 4 * (number + 1)


def test_values_of_megabytes_pass_in_bounded_memory(root: Store, tmp_path: Path) -> None:
    """24 masks of 8 MB in one shard: 192 MB of values, of which few are ever in memory."""
    script = f"""
import resource, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from pathlib import Path
from services.shards.cache import ShardCache
from services.shards.columns import add_column
from services.shards.reader import DatasetReader
from services.shards.store import open_store
from tests.small_datasets import write_dataset

root = open_store({root.url!r})
write_dataset(root, shards=1, rows=24)
keys = [f"train/0/0/{{row}}.png" for row in range(24)]
mask = lambda row: np.random.default_rng(row).bytes(8 << 20)
schema = pa.schema([("key", pa.string()), ("value", pa.binary())])
with pq.ParquetWriter({str(tmp_path / "v.parquet")!r}, schema) as writer:
    for row in reversed(range(24)):
        writer.write_table(pa.table({{"key": [keys[row]], "value": [mask(row)]}}, schema))
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
done = add_column(root, "digits", "mask", Path({str(tmp_path / "v.parquet")!r}), splits=["train"])
parts = [column.rows for column in done.manifest.splits[0].shards[0].columns]
assert parts == [3] * 8, parts
cache = ShardCache({str(tmp_path / "cache")!r}, 1 << 30)
reader = DatasetReader(root, "digits", split="train", cache=cache)
for row in (23, 0, 11):
    (found,) = reader.column("mask", np.array([0]), np.array([row]))
    assert found == mask(row), row
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # A part of 32 MiB: its values, its file (which grows by doubling), and what is mapped.
    assert int(done.stdout) < 190 << 10, done.stdout


def test_keys_must_be_those_of_the_rows_once(root: Store, tmp_path: Path) -> None:
    keys, values = prepared(root, tmp_path)
    files = {
        r"2 keys of the dataset are not in the file: '.*', '.*'": (keys[2:], values[2:]),
        r"1 keys belong to no row .*'none.png'": ([*keys, "none.png"], [*values, 0]),
        r"1 keys stand more than once in the file: 'train/0/0/0.png'": (
            [*keys, keys[0]],
            [*values, 5],
        ),
        r"17 keys of the dataset .*, \.\.\.\. ": (["a"], [1]),
        "has no rows": ([], []),
    }
    for words, (some_keys, some_values) in files.items():
        file = values_file(tmp_path / "v.parquet", some_keys, some_values, pa.int64())
        with pytest.raises(InvalidInputError, match=words):
            add_column(root, "digits", "number", file)
    assert list_versions(root, "digits") == [1]
    assert root.list("digits/columns") == []


def test_a_key_of_two_rows_is_refused(root: Store, tmp_path: Path) -> None:
    first = write_dataset(root).manifest.splits[0]
    again = write_dataset(root, rows=4)  # the same keys but for the last of each shard
    commit(root, extend(root, again, [first], "other shards"))
    keys = sorted(set(keys_of(root, "train", tmp_path / "a")))
    file = values_file(tmp_path / "v.parquet", keys, list(range(15)))
    with pytest.raises(
        InvalidInputError, match=r"12 keys name several rows of the dataset: 'train"
    ):
        add_column(root, "digits", "number", file, splits=["train"])


def test_a_shard_that_stands_twice_is_given_once(root: Store, tmp_path: Path) -> None:
    base = write_dataset(root)
    commit(root, extend(root, base, [base.manifest.splits[0]], "once more"))
    keys = keys_of(root, "train", tmp_path / "a")
    assert len(keys) == 30
    file = values_file(tmp_path / "v.parquet", keys[:15], list(range(15)))
    add_column(root, "digits", "number", file, splits=["train"])
    assert read_all(root, "train", "number", tmp_path / "a").tolist() == [*range(15), *range(15)]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"key": ["a"], "valu": [1]}, "it needs `key` and `value`"),
        ({"key": [1], "value": [1]}, "key is int64"),
        ({"key": ["a"], "value": [True]}, "value is bool"),
        ({"key": ["a"], "value": [[1]]}, "value is list"),
        ({"key": ["a", None], "value": [1, 2]}, "the key of row 1 is null"),
        ({"key": ["KEYS"], "value": [None]}, "the value of row 0 is null"),
    ],
)
def test_a_file_that_is_no_column_is_refused(
    root: Store, tmp_path: Path, table: dict[str, list[Any]], words: str
) -> None:
    keys, values = prepared(root, tmp_path)
    if table["key"] == ["KEYS"]:
        table = {"key": keys, "value": pa.array([None, *values[1:]], pa.int64())}
    pq.write_table(pa.table(table), tmp_path / "v.parquet")
    with pytest.raises(InvalidInputError, match=words):
        add_column(root, "digits", "number", tmp_path / "v.parquet")
    assert list_versions(root, "digits") == [1]


def test_other_bad_input_is_refused(
    root: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, values = prepared(root, tmp_path)
    file = values_file(tmp_path / "v.parquet", keys, values)
    with pytest.raises(NotFoundError, match="there is no file"):
        add_column(root, "digits", "a", tmp_path / "none.parquet")
    with pytest.raises(NotFoundError, match="no split 'test'; there are: train, validation"):
        add_column(root, "digits", "a", file, splits=["test"])
    with pytest.raises(InvalidInputError, match="column name"):
        add_column(root, "digits", "../a", file)
    whole = file.read_bytes()
    for cut in (0, 4, len(whole) // 2, len(whole) - 9):
        file.write_bytes(whole[:cut])
        with pytest.raises(InvalidInputError, match="not a whole Parquet file"):
            add_column(root, "digits", "a", file)
    file.write_bytes(whole)
    add_column(root, "digits", "a", file)
    with pytest.raises(InvalidInputError, match="no rows without a column 'a'"):
        add_column(root, "digits", "a", file)
    large = values_file(tmp_path / "large.parquet", keys, ["x"] * 16 + ["x" * 100])
    monkeypatch.setattr("services.shards.column_input.MAX_VALUE_BYTES", 99)
    with pytest.raises(
        InvalidInputError, match=r"'validation/0/0/1.png' has 100 bytes, at most 99"
    ):
        add_column(root, "digits", "b", large)
    assert list_versions(root, "digits") == [1, 2]


def test_rows_appended_later_have_no_value_until_it_is_given(root: Store, tmp_path: Path) -> None:
    write_dataset(root)
    keys = keys_of(root, "train", tmp_path / "a")
    add_column(
        root, "digits", "n", values_file(tmp_path / "v.parquet", keys, list(range(15))),
        splits=["train"],
    )  # fmt: skip
    append_two_rows(root)
    reader = DatasetReader(root, "digits", split="train", cache=ShardCache(tmp_path / "b", 1 << 30))
    assert reader.column("n", np.array([2]), np.array([4])).tolist() == [14]
    with pytest.raises(NotFoundError, match="appended after the column was added"):
        reader.column("n", np.array([3]), np.array([0]))
    wrong = values_file(tmp_path / "v.parquet", ["new/0", "new/1"], ["a", "b"])
    with pytest.raises(InvalidInputError, match="is int64, the values are string"):
        add_column(root, "digits", "n", wrong, splits=["train"])
    every = values_file(tmp_path / "v.parquet", [*keys, "new/0", "new/1"], list(range(17)))
    with pytest.raises(InvalidInputError, match=r"15 keys belong to no row .* lacks the column"):
        add_column(root, "digits", "n", every, splits=["train"])
    rest = values_file(tmp_path / "v.parquet", ["new/0", "new/1"], [15, 16])
    add_column(root, "digits", "n", rest, splits=["train"])
    assert read_all(root, "train", "n", tmp_path / "b").tolist() == list(range(17))


def test_another_column_meanwhile_is_kept_other_rows_are_a_conflict(
    root: Store, tmp_path: Path
) -> None:
    keys, values = prepared(root, tmp_path)
    file = values_file(tmp_path / "v.parquet", keys, values)
    other = values_file(tmp_path / "w.parquet", keys, ["x"] * 17)

    def other_first(done: int, total: int) -> None:
        if done == total:
            add_column(root, "digits", "second", other)

    done = add_column(root, "digits", "first", file, progress=other_first)
    assert done.manifest.version == 3
    for shard in done.manifest.splits[0].shards:
        assert [column.name for column in shard.columns] == ["second", "first"]

    def same_first(done: int, total: int) -> None:
        if done == total:
            add_column(root, "digits", "third", other)

    with pytest.raises(CommitConflictError, match="their values of 'third', meanwhile"):
        add_column(root, "digits", "third", file, progress=same_first)
    assert list_versions(root, "digits") == [1, 2, 3, 4]

    def other_type_first(done: int, total: int) -> None:
        if done == total:
            train = values_file(tmp_path / "t.parquet", keys[:15], ["x"] * 15)
            add_column(root, "digits", "typed", train, splits=["train"])

    held_out = values_file(tmp_path / "h.parquet", keys[15:], [1, 2])
    with pytest.raises(InvalidInputError, match="'typed' of split train is string, the values are"):
        add_column(
            root, "digits", "typed", held_out, splits=["validation"], progress=other_type_first
        )
    assert list_versions(root, "digits") == [1, 2, 3, 4, 5]

    def append_first(done: int, total: int) -> None:
        if done == total:
            append_two_rows(root)

    with pytest.raises(CommitConflictError, match="added or removed rows"):
        add_column(root, "digits", "fourth", file, progress=append_first)
