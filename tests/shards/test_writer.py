"""Shards are named by their contents, and their manifest entries say what they hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import FormatError, InvalidInputError
from services.shards import layout
from services.shards.manifest import commit, load_manifest
from services.shards.store import Store, open_store
from services.shards.writer import ShardWriter, build_split, write_shard
from services.types import TokenRows
from services.wire.seit import v1 as wire

MakeRows = Callable[[int, int], TokenRows]


def test_entry_says_what_the_file_holds(
    store: Store, make_rows: MakeRows, spec: wire.TokenSpec
) -> None:
    rows = make_rows(40, 1)
    result = write_shard(store, "ds", "train", rows, spec)
    shard = result.shard
    data = store.child("ds").read(shard.path)
    assert shard.bytes == len(data)
    assert shard.xxh3 == xxhash.xxh3_128_hexdigest(data)
    assert shard.path == f"shards/train-{shard.xxh3[:16]}.parquet"
    assert (shard.rows, shard.source_bytes) == (40, rows.source_bytes.sum())
    assert shard.labels is not None
    for label, count in zip(shard.labels.labels, shard.labels.rows, strict=True):
        assert count == (rows.labels == label).sum()
    assert sum(shard.labels.rows) == 40
    np.testing.assert_array_equal(result.code_counts, np.bincount(rows.ids.ravel(), minlength=391))
    np.testing.assert_array_equal(layout.from_parquet(data, spec).ids, rows.ids)


def test_repeated_task_writes_the_same_file(
    root: Store, make_rows: MakeRows, spec: wire.TokenSpec
) -> None:
    first = write_shard(root, "ds", "train", make_rows(9, 1), spec)
    again = write_shard(root, "ds", "train", make_rows(9, 1), spec)
    write_shard(root, "ds", "train", make_rows(9, 2), spec)
    assert first.shard == again.shard
    assert len(root.child("ds").list("shards")) == 2


@settings(deadline=None, max_examples=25)
@given(sizes=st.lists(st.integers(0, 30), max_size=6), shard_rows=st.integers(1, 25))
def test_any_cut_of_the_stream_gives_the_same_shards(sizes: list[int], shard_rows: int) -> None:
    root = open_store("memory://writer-cuts")
    total = sum(sizes)
    spec = wire.TokenSpec(grid_height=1, grid_width=2, codes=512, channels=1)
    ids = np.arange(total * 2, dtype=np.uint16).reshape(total, 1, 2)
    labels, keys = np.arange(total), [str(row) for row in range(total)]
    with ShardWriter(root, "ds", "train", spec, shard_rows) as writer:
        start = 0
        for size in sizes:
            part = slice(start, start + size)
            writer.add(TokenRows(ids[part], labels[part], keys[part], labels[part]))
            start += size
    counts = [result.shard.rows for result in writer.results]
    whole, rest = divmod(total, shard_rows)
    assert counts == [shard_rows] * whole + [rest] * (rest > 0)
    found = [
        layout.from_parquet(root.child("ds").read(result.shard.path), spec)
        for result in writer.results
    ]
    assert [key for rows in found for key in rows.keys] == keys
    assert [label for rows in found for label in rows.labels.tolist()] == labels.tolist()


def test_nothing_more_is_written_after_an_error(
    root: Store, make_rows: MakeRows, spec: wire.TokenSpec
) -> None:
    def stream() -> None:
        with ShardWriter(root, "ds", "train", spec, 10) as writer:
            writer.add(make_rows(15, 1))
            raise KeyError

    with pytest.raises(KeyError):
        stream()
    assert len(root.child("ds").list("shards")) == 1


def test_split_can_be_committed(root: Store, make_rows: MakeRows, spec: wire.TokenSpec) -> None:
    results = [write_shard(root, "ds", "train", make_rows(9, seed), spec) for seed in range(3)]
    split = build_split(root, "ds", "train", results, spec.codes)
    assert sum(split.code_counts) == 27 * 24
    manifest = wire.Manifest(dataset="ds", spec=spec, tokenizer_kind="release", splits=[split])
    commit(root, manifest)
    assert load_manifest(root, "ds").manifest.splits == [split]


def test_bad_arguments_are_refused_before_anything_is_written(
    root: Store, make_rows: MakeRows, spec: wire.TokenSpec
) -> None:
    rows = make_rows(3, 1)
    with pytest.raises(InvalidInputError, match="split name"):
        write_shard(root, "ds", "../train", rows, spec)
    with pytest.raises(InvalidInputError, match="dataset name"):
        write_shard(root, "../ds", "train", rows, spec)
    bad = dataclasses.replace(rows, source_bytes=np.array([0, -1, 5]))
    with pytest.raises(InvalidInputError, match="source_bytes -1"):
        write_shard(root, "ds", "train", bad, spec)
    with pytest.raises(FormatError, match="grid_height is 0"):
        write_shard(root, "ds", "train", rows, dataclasses.replace(spec, grid_height=0))
    with pytest.raises(InvalidInputError, match="shard_rows is 0"):
        ShardWriter(root, "ds", "train", spec, 0)
    assert root.list() == []
