"""Folders that a cache cannot use, or that somebody tidies up while it does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from services.errors import StoreError
from services.shards import layout
from services.shards.cache import ShardCache
from services.shards.cache_folder import EntryFolder
from services.shards.entry import CachedShard, EntryFile
from services.shards.store import Store
from services.wire.seit import v1 as wire

Written = Callable[[int], tuple[Any, list[wire.Shard], int]]
EVERY = np.arange(40)


def test_a_place_that_takes_no_folder_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file/cache", Path("/proc/seit")):
        with pytest.raises(StoreError, match="no shard can be laid down there; give another"):
            ShardCache(place, 1 << 20)


def test_a_folder_that_was_tidied_up_is_made_anew(
    root: Store, tmp_path: Path, spec: wire.TokenSpec, written: Written
) -> None:
    blocks, shards, _ = written(2)
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    cache.rows(root, "ds", shards[0], spec)
    shutil.rmtree(tmp_path / "cache")
    for rows, shard in zip(blocks, shards, strict=True):
        ids, labels = cache.rows(root, "ds", shard, spec).take(EVERY)
        np.testing.assert_array_equal(ids, rows.ids)
        np.testing.assert_array_equal(labels, rows.labels)
    assert cache.counters.misses == 3


def test_a_folder_that_became_something_else_is_told_as_the_caches_own_fault(
    root: Store, tmp_path: Path, spec: wire.TokenSpec, written: Written
) -> None:
    _, shards, _ = written(1)
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    shutil.rmtree(tmp_path / "cache/locks")
    (tmp_path / "cache/locks").write_text("x")
    with pytest.raises(StoreError, match=f"cache folder {tmp_path / 'cache'}: .*Not a directory"):
        cache.rows(root, "ds", shards[0], spec)


def test_a_folder_in_the_place_of_an_entry_is_told_too(
    root: Store, tmp_path: Path, spec: wire.TokenSpec, written: Written
) -> None:
    _, shards, _ = written(1)
    ShardCache(tmp_path / "cache", 1 << 30).rows(root, "ds", shards[0], spec)
    (entry,) = (tmp_path / "cache").glob("*.rows")
    entry.unlink()
    entry.mkdir()
    with pytest.raises(StoreError, match="Is a directory"):
        ShardCache(tmp_path / "cache", 1 << 30).rows(root, "ds", shards[0], spec)


class Tidied(EntryFile):
    """A file beside which somebody tidies up as it is written, the first few times."""

    folder: Path
    times: int

    def write(self, file: BinaryIO) -> None:
        super().write(file)
        if self.times:
            self.times -= 1
            shutil.rmtree(self.folder)


@pytest.mark.parametrize("times", [1, 3, 4])
def test_a_folder_that_is_tidied_up_in_the_middle_of_a_shard_gets_it_again(
    tmp_path: Path, spec: wire.TokenSpec, make_rows: Any, times: int
) -> None:
    rows, shard = make_rows(40, 0), wire.Shard(path="x", rows=40)
    file = Tidied(layout.read_rows(layout.to_parquet(rows, spec), spec), spec)
    file.folder, file.times = tmp_path / "cache", times

    def lay_down() -> CachedShard:
        folder = EntryFolder(file.folder, 1 << 30)
        return folder.lay_down("a.rows", file, lambda path: CachedShard(path, shard, spec), print)

    if times > 3:  # no end of it
        with pytest.raises(StoreError, match="somebody takes files away as they are written"):
            lay_down()
    found = lay_down()
    assert found.check_payload()
    np.testing.assert_array_equal(found.take(EVERY)[0], rows.ids)
    assert [path.name for path in file.folder.iterdir() if path.is_file()] == ["a.rows"]


def test_a_folder_that_became_a_file_under_an_open_shard_is_told_too(
    root: Store, tmp_path: Path, spec: wire.TokenSpec, written: Written
) -> None:
    _, shards, _ = written(1)
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    cache.rows(root, "ds", shards[0], spec)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("x")
    with pytest.raises(StoreError, match=f"cache folder {tmp_path / 'cache'}: .*Not a directory"):
        cache.rows(root, "ds", shards[0], spec)
