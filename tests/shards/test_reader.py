from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from services.errors import InvalidInputError, NotFoundError
from services.shards.cache import ShardCache
from services.shards.manifest import commit, extend
from services.shards.reader import DatasetReader
from services.shards.store import Store
from services.types import UNLABELLED


def test_reads_rows_as_the_plan_asks_for_them(
    store: Store, tmp_path: Path, make_manifest, make_rows
) -> None:
    blocks = [make_rows(count, seed) for seed, count in enumerate((7, 1, 12))]
    loaded = commit(store, make_manifest(store, blocks))
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    reader = DatasetReader(store, "ds", split="train", cache=cache)
    assert reader.shard_rows.tolist() == [7, 1, 12]
    assert len(reader) == 20
    assert reader.classes == ("ant", "bee", "cat")
    assert reader.spec == loaded.spec
    assert int(reader.code_counts.sum()) == 20 * 24
    assert (reader.source.version, reader.source.manifest_digest) == (1, loaded.digest)

    rng = np.random.default_rng(0)
    shards = rng.integers(-1, 3, 60)
    rows = np.array([rng.integers(0, max(1, [7, 1, 12][s])) if s >= 0 else -1 for s in shards])
    ids, labels = reader.take(shards, rows)
    keys = reader.keys(shards, rows)
    for place, (shard, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True)):
        if shard < 0:
            assert not ids[place].any()
            assert (labels[place], keys[place]) == (UNLABELLED, "")
        else:
            np.testing.assert_array_equal(ids[place], blocks[shard].ids[row])
            assert labels[place] == blocks[shard].labels[row]
            assert keys[place] == blocks[shard].keys[row]
    assert cache.counters.misses == 3


@pytest.mark.parametrize("batch_rows", [1, 4, 100])
def test_iter_rows_gives_all_in_order(
    root: Store, tmp_path: Path, make_manifest, make_rows, batch_rows: int
) -> None:
    blocks = [make_rows(count, seed) for seed, count in enumerate((5, 9))]
    commit(root, make_manifest(root, blocks))
    reader = DatasetReader(root, "ds", split="train", cache=ShardCache(tmp_path / "c", 1 << 30))
    parts = list(reader.iter_rows(batch_rows))
    assert max(map(len, parts)) <= batch_rows
    np.testing.assert_array_equal(
        np.concatenate([part.ids for part in parts]), np.concatenate([b.ids for b in blocks])
    )
    assert [key for part in parts for key in part.keys] == [k for b in blocks for k in b.keys]
    np.testing.assert_array_equal(
        np.concatenate([part.source_bytes for part in parts]),
        np.concatenate([b.source_bytes for b in blocks]),
    )


def test_a_past_version_reads_as_it_was(
    root: Store, tmp_path: Path, make_manifest, make_rows
) -> None:
    base = commit(root, make_manifest(root, [make_rows(5, 0)]))
    more = make_manifest(root, [make_rows(3, 1)]).splits
    commit(root, extend(root, base, more, "more"))
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    sizes = [
        len(DatasetReader(root, "ds", split="train", cache=cache, version=version))
        for version in (1, 2, None)
    ]
    assert sizes == [5, 8, 8]


def test_what_is_not_there_is_said(root: Store, tmp_path: Path, make_manifest, make_rows) -> None:
    commit(root, make_manifest(root, [make_rows(5, 0)]))
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    with pytest.raises(NotFoundError, match="no split 'test'; there are: train"):
        DatasetReader(root, "ds", split="test", cache=cache)
    with pytest.raises(NotFoundError, match="no version 4"):
        DatasetReader(root, "ds", split="train", cache=cache, version=4)
    reader = DatasetReader(root, "ds", split="train", cache=cache)
    for shards, rows in (([1], [0]), ([-2], [0]), ([0], [5]), ([0], [-1])):
        with pytest.raises(InvalidInputError):
            reader.take(np.array(shards), np.array(rows))
    with pytest.raises(InvalidInputError, match="batch_rows"):
        next(reader.iter_rows(0))
