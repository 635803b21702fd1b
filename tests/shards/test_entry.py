from __future__ import annotations

import contextlib
import fcntl
import gc
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import FormatError
from services.shards import layout
from services.shards.entry import CachedShard, EntryFile
from services.types import TokenRows
from services.wire.seit import v1 as wire


def write_entry(path: Path, rows: TokenRows, spec: wire.TokenSpec) -> wire.Shard:
    file = EntryFile(layout.read_rows(layout.to_parquet(rows, spec), spec), spec)
    with open(path, "wb") as target:
        file.write(target)
    assert path.stat().st_size == file.bytes
    return wire.Shard(path="shards/x.parquet", rows=len(rows))


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 20),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    codes=st.sampled_from([1, 2, 256, 257, 391, 65_536]),
    seed=st.integers(0, 99),
)
def test_what_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    height: int,
    width: int,
    codes: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    spec = wire.TokenSpec(grid_height=height, grid_width=width, codes=codes, channels=1)
    wanted = TokenRows(
        ids=rng.integers(0, codes, (rows, height, width)).astype(np.uint16),
        labels=rng.integers(-1, 2**31 - 1, rows),
        keys=["é" * int(length) for length in rng.integers(0, 5, rows)],
        source_bytes=rng.integers(0, 2**40, rows),
    )
    path = tmp_path_factory.mktemp("entry") / "x.rows"
    shard = CachedShard(path, write_entry(path, wanted, spec), spec)
    index = rng.integers(0, rows, 30)
    ids, labels = shard.take(index)
    np.testing.assert_array_equal(ids, wanted.ids[index])
    np.testing.assert_array_equal(labels, wanted.labels[index])
    np.testing.assert_array_equal(shard.source_bytes(index), wanted.source_bytes[index])
    assert shard.keys(index) == [wanted.keys[row] for row in index]
    assert (len(shard), shard.check_payload(), shard.touch(path)) == (rows, True, True)


def test_answers_are_copies_that_may_be_changed(
    tmp_path: Path, make_rows, spec: wire.TokenSpec
) -> None:
    path = tmp_path / "x.rows"
    shard = CachedShard(path, write_entry(path, make_rows(9, 0), spec), spec)
    ids, labels = shard.take(np.arange(9))
    ids += 1
    labels += 1
    assert shard.check_payload()


def test_an_unlinked_entry_is_noticed_and_still_read(
    tmp_path: Path, make_rows, spec: wire.TokenSpec
) -> None:
    path = tmp_path / "x.rows"
    shard = CachedShard(path, write_entry(path, make_rows(9, 0), spec), spec)
    path.unlink()
    assert not shard.touch(path)
    assert shard.check_payload()
    again = CachedShard(path, write_entry(path, make_rows(9, 0), spec), spec)
    assert (shard.touch(path), again.touch(path)) == (False, True)


def opened(path: Path) -> int:
    """How often this process has the file open; other tests' threads may open others meanwhile."""
    found = 0
    for handle in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{handle}") == str(path)
    return found


def test_an_entry_is_one_open_file_that_holds_the_lock(
    tmp_path: Path, make_rows, spec: wire.TokenSpec
) -> None:
    path = tmp_path / "x.rows"
    written = write_entry(path, make_rows(9, 0), spec)
    shards = [CachedShard(path, written, spec) for _ in range(20)]
    assert opened(path) == 20

    def lock() -> None:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    with pytest.raises(BlockingIOError):
        lock()
    del shards
    gc.collect()
    lock()
    assert opened(path) == 0


@pytest.mark.parametrize("change", [{"grid_height": 6}, {"grid_width": 4}, {"codes": 100}])
def test_another_spec_is_a_format_error(
    tmp_path: Path, make_rows, spec: wire.TokenSpec, change: dict[str, int]
) -> None:
    path = tmp_path / "x.rows"
    shard = write_entry(path, make_rows(9, 0), spec)
    sizes = {"grid_height": 4, "grid_width": 6, "codes": 391} | change
    with pytest.raises(FormatError, match="expected"):
        CachedShard(path, shard, wire.TokenSpec(**sizes))
