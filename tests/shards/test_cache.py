from __future__ import annotations

import fcntl
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xxhash

from services.errors import FormatError, IntegrityError, InvalidInputError, NotFoundError
from services.shards import layout
from services.shards.cache import ShardCache
from services.shards.entry import CachedShard
from services.shards.store import Store
from services.types import TokenRows
from services.wire.seit import v1 as wire

LIMIT = 1 << 30


def assert_rows(shard: CachedShard, rows: TokenRows) -> None:
    order = np.random.default_rng(0).permutation(len(rows))
    ids, labels = shard.take(order)
    np.testing.assert_array_equal(ids, rows.ids[order])
    np.testing.assert_array_equal(labels, rows.labels[order])
    assert ids.dtype == np.uint16
    assert shard.keys(order) == [rows.keys[row] for row in order]
    np.testing.assert_array_equal(shard.source_bytes(order), rows.source_bytes[order])


class Reader:
    """Someone who reads."""


def is_free(folder: Path, shard: wire.Shard) -> bool:
    """Whether eviction may take the shard's entry."""
    (path,) = (path for path in entries(folder) if shard.xxh3 in path.name)
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.rows"))


def test_rows_in_any_order_and_counters(
    root: Store, tmp_path: Path, spec: wire.TokenSpec, make_rows, put_shard
) -> None:
    rows = make_rows(50, 0)
    shard = put_shard(root, rows)
    cache = ShardCache(tmp_path / "cache", LIMIT)
    assert_rows(cache.rows(root, "ds", shard, spec), rows)
    assert_rows(cache.rows(root, "ds", shard, spec), rows)
    found = cache.counters
    assert (found.hits, found.misses, found.bytes_fetched) == (1, 1, shard.bytes)
    assert (found.bytes_hit, found.refetches, found.quarantined) == (0, 0, 0)
    root.delete(f"ds/{shard.path}")
    other = pickle.loads(pickle.dumps(cache))  # as another process of the node sees it
    assert_rows(other.rows(root, "ds", shard, spec), rows)
    assert (other.counters.hits, other.counters.bytes_hit) == (1, shard.bytes)
    repeated, _ = other.rows(root, "ds", shard, spec).take(np.array([7, 7, 0]))
    np.testing.assert_array_equal(repeated, rows.ids[[7, 7, 0]])
    empty, labels = other.rows(root, "ds", shard, spec).take(np.array([], np.int64))
    assert (empty.shape, labels.shape) == ((0, 4, 6), (0,))


def test_small_codebooks_take_one_byte(root: Store, tmp_path: Path, make_rows, put_shard) -> None:
    spec = wire.TokenSpec(grid_height=4, grid_width=6, codes=256, channels=8)
    rows = make_rows(20, 0)
    rows = TokenRows(rows.ids % 256, rows.labels, rows.keys, rows.source_bytes)
    data = layout.to_parquet(rows, spec)
    digest = xxhash.xxh3_128_hexdigest(data)
    root.write("ds/shards/x.parquet", data)
    shard = wire.Shard(path="shards/x.parquet", rows=20, bytes=len(data), xxh3=digest)
    assert_rows(ShardCache(tmp_path / "cache", LIMIT).rows(root, "ds", shard, spec), rows)


@pytest.mark.parametrize("index", [[-1], [50], [0, 2**40]])
def test_rows_that_do_not_exist_are_refused(
    root: Store, tmp_path: Path, spec: wire.TokenSpec, make_rows, put_shard, index: list[int]
) -> None:
    shard = ShardCache(tmp_path, LIMIT).rows(root, "ds", put_shard(root, make_rows(50, 0)), spec)
    for ask in (shard.take, shard.keys, shard.source_bytes):
        with pytest.raises(InvalidInputError, match="rows 0 to 49"):
            ask(np.array(index))


def test_a_damaged_shard_is_fetched_again_then_refused(
    root: Store, tmp_path: Path, spec: wire.TokenSpec, make_rows, put_shard
) -> None:
    rows = make_rows(50, 0)
    shard = put_shard(root, rows)
    path = f"ds/{shard.path}"
    good = root.read(path)
    root.write(path, good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
    cache = ShardCache(tmp_path / "cache", LIMIT)
    for _ in range(2):
        with pytest.raises(IntegrityError, match=f"{shard.path}.*expected {shard.xxh3}"):
            cache.rows(root, "ds", shard, spec)
    assert (cache.counters.refetches, cache.counters.quarantined) == (4, 1)
    assert entries(tmp_path / "cache") == []
    root.write(path, good)
    assert_rows(cache.rows(root, "ds", shard, spec), rows)


def test_bytes_spoilt_on_the_way_are_fetched_again(
    faulty_s3, s3_store: Store, tmp_path: Path, spec: wire.TokenSpec, make_rows, put_shard
) -> None:
    cache = ShardCache(tmp_path, LIMIT)
    for seed, faults in enumerate([["forge"], ["truncate", 503, "flip", "forge"], ["reset"]]):
        rows = make_rows(30, seed)
        shard = put_shard(s3_store, rows)
        faulty_s3.faults = faults
        assert_rows(cache.rows(s3_store, "ds", shard, spec), rows)
    assert (cache.counters.refetches, cache.counters.quarantined) == (3, 0)


def test_what_is_read_for_others_is_held_against_the_checksum_of_s3(
    faulty_s3, s3_store: Store
) -> None:
    """A flipped bit is asked for again in `read`, and left to the caller in `read_bare`."""
    data = bytes(range(256)) * 64
    s3_store.write("file", data)
    faulty_s3.faults = ["flip"]
    assert s3_store.read_bare("file") != data
    assert s3_store.retries == 0
    faulty_s3.faults = ["flip", "flip"]
    assert s3_store.read("file") == data
    assert s3_store.retries == 2


def test_a_missing_shard_is_not_found(
    root: Store, tmp_path: Path, spec: wire.TokenSpec, make_rows, put_shard
) -> None:
    shard = put_shard(root, make_rows(5, 0))
    root.delete(f"ds/{shard.path}")
    with pytest.raises(NotFoundError, match=shard.path):
        ShardCache(tmp_path, LIMIT).rows(root, "ds", shard, spec)


def test_a_shard_of_another_form_is_refused(
    root: Store, tmp_path: Path, make_rows, put_shard
) -> None:
    shard = put_shard(root, make_rows(5, 0))
    other = wire.TokenSpec(grid_height=6, grid_width=4, codes=391, channels=8)
    with pytest.raises(FormatError, match=r"\(4, 6\)"):
        ShardCache(tmp_path, LIMIT).rows(root, "ds", shard, other)


def test_damaged_entries_are_never_read(
    root: Store, tmp_path: Path, spec: wire.TokenSpec, make_rows, put_shard
) -> None:
    rows = make_rows(50, 0)
    shard = put_shard(root, rows)
    ShardCache(tmp_path, LIMIT).rows(root, "ds", shard, spec)
    (entry,) = entries(tmp_path)
    good = entry.read_bytes()
    flips = [0, 9, 20, 43, 60, 130, len(good) // 2, len(good) - 70]
    spoilt = [good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :] for at in flips]
    spoilt += [good[:length] for length in (0, 1, 64, 127, 128, len(good) - 1)] + [good + b"\0"]
    for data in spoilt:
        entry.write_bytes(data)
        cache = ShardCache(tmp_path, LIMIT)
        assert_rows(cache.rows(root, "ds", shard, spec), rows)
        assert (cache.counters.misses, cache.counters.refetches) == (1, 1)
        assert entry.read_bytes() == good


def test_never_over_the_limit_and_open_shards_stay_valid(
    root: Store, tmp_path: Path, spec: wire.TokenSpec, written
) -> None:
    blocks, shards, size = written(12)
    folder = tmp_path / "cache"
    cache = ShardCache(folder, int(size * 3.5))
    held = []
    for shard in shards:
        held.append(cache.rows(root, "ds", shard, spec))
        assert sum(path.stat().st_size for path in entries(folder)) <= size * 3.5 + 200
    for opened, rows in zip(held, blocks, strict=True):
        assert_rows(opened, rows)
    tiny = ShardCache(tmp_path / "tiny", 1)
    for shard, rows in zip(shards[:3], blocks, strict=False):
        assert_rows(tiny.rows(root, "ds", shard, spec), rows)
        assert len(entries(tmp_path / "tiny")) == 1


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_cache_of_half_the_data_answers_about_half_of_each_epoch(
    root: Store, tmp_path: Path, spec: wire.TokenSpec, written, shuffled: bool
) -> None:
    _, shards, size = written(24)
    cache = ShardCache(tmp_path / "cache", int(size * 12.5))
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(4):
        before = cache.counters.hits
        order = rng.permutation(24) if shuffled else np.arange(24)
        for number in order:
            cache.rows(root, "ds", shards[number], spec)
        hits.append(cache.counters.hits - before)
    assert hits[0] == 0
    assert min(hits[1:]) >= 10


def test_what_is_kept_stays_until_it_is_let_go(
    root: Store, tmp_path: Path, spec: wire.TokenSpec, written
) -> None:
    _, shards, size = written(12)
    reader, other = Reader(), Reader()
    # Two processes of a node: one fetches ahead, the other's fetches must not push that out.
    ours, theirs = (ShardCache(tmp_path / "cache", int(size * 6.5)) for _ in range(2))
    ours.keep(reader, root, "ds", shards[:3])
    for shard in shards[:3]:
        ours.rows(root, "ds", shard, spec)
    for shard in shards[3:]:
        theirs.rows(root, "ds", shard, spec)
    for shard in shards[:3]:
        assert ours.holds(root, "ds", shard)
        assert theirs.rows(root, "ds", shard, spec) is not None
    assert theirs.counters.misses == 9
    # A file that two readers need is held until both are done with it.
    ours.keep(other, root, "ds", shards[2:3])
    ours.keep(reader, root, "ds", [])
    assert [ours.holds(root, "ds", shard) for shard in shards[:3]] == [False, False, True]
    # What nobody holds may go: an exclusive lock on its file can be had.
    del theirs
    assert [is_free(tmp_path / "cache", shard) for shard in shards[:3]] == [True, True, False]


def test_no_more_than_half_of_the_cache_is_kept(
    root: Store, tmp_path: Path, spec: wire.TokenSpec, written
) -> None:
    """Or a second process could bring nothing in, and entries in use would be thrown out."""
    blocks, shards, size = written(12)
    cache = ShardCache(tmp_path / "cache", int(size * 8.5))
    reader = Reader()
    cache.keep(reader, root, "ds", shards)
    for shard, rows in zip(shards, blocks, strict=True):
        assert_rows(cache.rows(root, "ds", shard, spec), rows)
        assert sum(cache.holds(root, "ds", one) for one in shards) <= 4
    assert cache.holds(root, "ds", shards[-1])


def test_a_dataset_that_nobody_reads_goes_first(
    root: Store, tmp_path: Path, spec: wire.TokenSpec, make_rows, put_shard
) -> None:
    shards = [put_shard(root, make_rows(40, seed)) for seed in range(4)]
    for shard in shards[:2]:
        root.write(f"old/{shard.path}", root.read(f"ds/{shard.path}"))
    cache = ShardCache(tmp_path, LIMIT)
    size = max(cache.rows(root, "old", shard, spec).file_bytes for shard in shards[:2])
    old = entries(tmp_path)
    for path in old:
        os.utime(path, (1e9, 1e9))
    cache = ShardCache(tmp_path, int(size * 4.5))
    for shard in shards:
        cache.rows(root, "ds", shard, spec)
    assert len(entries(tmp_path)) == 4
    assert not any(path.exists() for path in old)


def test_threads_share_one_fetch(
    root: Store, tmp_path: Path, spec: wire.TokenSpec, make_rows, put_shard
) -> None:
    blocks = [make_rows(40, seed) for seed in range(3)]
    shards = [put_shard(root, rows) for rows in blocks]
    caches = [ShardCache(tmp_path, LIMIT) for _ in range(4)]

    def ask(number: int) -> None:
        cache = caches[number % 4]
        assert_rows(cache.rows(root, "ds", shards[number % 3], spec), blocks[number % 3])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(48)))
    assert sum(cache.counters.misses for cache in caches) == 3


def test_a_limit_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="limit"):
        ShardCache(tmp_path, 0)


def test_killed_users_leave_nothing_to_clean_by_hand(
    root: Store, tmp_path: Path, spec: wire.TokenSpec, make_rows, put_shard
) -> None:
    blocks = [make_rows(400, seed) for seed in range(6)]
    shards = [put_shard(root, rows) for rows in blocks]
    size = ShardCache(tmp_path / "one", LIMIT).rows(root, "ds", shards[0], spec).file_bytes
    folder, limit = tmp_path / "cache", int(size * 2.5)
    (tmp_path / "arguments").write_bytes(pickle.dumps((root, folder, limit, shards, spec)))
    program = (
        "import pickle\n"
        "from services.shards.cache import ShardCache\n"
        f"arguments = open({str(tmp_path / 'arguments')!r}, 'rb').read()\n"
        "root, folder, limit, shards, spec = pickle.loads(arguments)\n"
        "cache = ShardCache(folder, limit)\n"
        "print('go', flush=True)\n"
        "while True:\n"
        "    for shard in shards:\n"
        "        cache.rows(root, 'ds', shard, spec)\n"
    )
    for delay in (0.0, 0.005, 0.02):
        users = [
            subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
            for _ in range(2)
        ]
        for user in users:
            assert user.stdout is not None
            user.stdout.readline()
        time.sleep(delay)
        for user in users:
            user.send_signal(signal.SIGKILL)
            user.wait()
            assert user.stdout is not None
            user.stdout.close()
        cache = ShardCache(folder, limit)
        for shard, rows in zip(shards, blocks, strict=True):
            assert_rows(cache.rows(root, "ds", shard, spec), rows)
        assert cache.counters.refetches == 0
        assert list(folder.glob(".*.tmp")) == []
        assert sum(path.stat().st_size for path in entries(folder)) <= limit


def test_a_process_that_only_reads_does_without_pandas(
    root: Store, tmp_path: Path, spec: wire.TokenSpec, make_rows, put_shard
) -> None:
    """Arrow imports it where it is asked for numpy's arrays: half a second of each new process."""
    rows = make_rows(40, 0)
    arguments = root, tmp_path / "cache", put_shard(root, rows), spec
    (tmp_path / "arguments").write_bytes(pickle.dumps(arguments))
    program = (
        "import pickle, sys\n"
        "from services.shards.cache import ShardCache\n"
        f"arguments = open({str(tmp_path / 'arguments')!r}, 'rb').read()\n"
        "root, folder, shard, spec = pickle.loads(arguments)\n"
        "rows = ShardCache(folder, 1 << 30).rows(root, 'ds', shard, spec)\n"
        "print(len(rows), 'pandas' in sys.modules)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["40", "False"]
