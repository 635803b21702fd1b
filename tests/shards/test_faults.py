"""What the token store survives: bad networks, racing writers, and processes killed at any moment.

Each test has a short form, which CI runs, and its full length under the mark `slow`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.shards.cache import ShardCache
from services.shards.entry import CachedShard
from services.shards.manifest import list_versions, load_manifest
from services.shards.orphans import find_orphans
from services.shards.reader import DatasetReader
from services.shards.retry import RetryPolicy
from services.shards.store import Store, open_store
from services.shards.verify import verify_dataset
from services.shards.writer import write_shard
from services.types import TokenRows
from services.wire.seit import v1 as wire
from tests.shards import fault_users
from tests.shards.fault_users import PROCESSES, SHARD_ROWS, SPEC, rows_of
from tests.shards.faulty_s3 import Chaos, Fault, FaultyS3

PATIENT = RetryPolicy(attempts=12, base_seconds=0.002, cap_seconds=0.05)
HURRIED_CLIENT = {"connect_timeout": 5, "read_timeout": 0.3}  # what a stall costs, seconds
FAULTS: tuple[Fault, ...] = (500, 503, "reset", "drop", "stall", "truncate", "flip", "forge")
LONG = pytest.mark.slow, pytest.mark.timeout(1800)


def full_length(short: int, long: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("count", [short, pytest.param(long, marks=LONG)])


def assert_rows(found: CachedShard, wanted: TokenRows) -> None:
    order = np.random.default_rng(0).permutation(len(wanted))
    ids, labels = found.take(order)
    np.testing.assert_array_equal(ids, wanted.ids[order])
    np.testing.assert_array_equal(labels, wanted.labels[order])
    assert found.keys(order) == [wanted.keys[row] for row in order]


def assert_sound(root: Store, dataset: str) -> None:
    assert [check for check in verify_dataset(root, dataset, workers=2) if check.failure] == []


@full_length(200, 1000)
def test_no_row_is_lost_or_corrupt_on_a_bad_network(
    faulty_s3: FaultyS3, s3_bucket: str, s3_server: Any, tmp_path: Path, count: int
) -> None:
    kinds = (*FAULTS, "spoil") if s3_server.checks else FAULTS
    chaos = faulty_s3.chaos = Chaos(kinds, limit=count, share=0.3, seed=count)
    root = open_store(
        f"s3://{s3_bucket}/root",
        retry=PATIENT,
        endpoint_url=faulty_s3.url,
        config_kwargs=HURRIED_CLIENT,
    )
    rows_read, number, refetches = 0, 0, 0
    while not chaos.spent:
        dataset, seeds = f"ds{number}", range(10 * number, 10 * number + 6)
        fault_users.begin(root, dataset, seeds[0])
        fault_users.append(root, dataset, seeds[1])
        with ThreadPoolExecutor(2) as pool:  # two writers at once
            list(pool.map(lambda seed: fault_users.append(root, dataset, seed), seeds[2:]))  # noqa: B023
        cache = ShardCache(tmp_path / dataset, 1 << 24)
        reader = DatasetReader(root, dataset, split="train", cache=cache)
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(reader.shard, range(len(reader.shard_rows))))
        written = {rows.keys[0]: rows for rows in map(rows_of, seeds)}
        assert len(found) == len(seeds)
        for shard in found:
            assert_rows(shard, written.pop(shard.keys(np.zeros(1, np.int64))[0]))
            rows_read += len(shard)
        refetches += cache.counters.refetches
        number += 1
    assert rows_read == number * 6 * SHARD_ROWS
    assert chaos.injected.total() == count
    assert set(chaos.injected) == set(kinds)
    assert refetches > 0  # flipped bits were seen
    assert root.retries > 0
    for dataset in root.folders():
        assert list_versions(root, dataset) == list(range(1, 7))
        assert_sound(root, dataset)
        assert find_orphans(root, dataset, min_age_seconds=0) == []


@pytest.fixture(params=["local", "s3"])
def durable(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A folder, or a bucket behind the proxy, which spoils nothing; for many processes."""
    if request.param == "local":
        return open_store(str(tmp_path / "root"))
    server = request.getfixturevalue("s3_server")
    bucket = request.getfixturevalue("s3_bucket")
    proxy: FaultyS3 = request.getfixturevalue("faulty_s3")
    return open_store(
        f"s3://{bucket}/root",
        retry=PATIENT,
        endpoint_url=proxy.url,
        key=server.key,  # the environment of other processes is that of the first test
        secret=server.secret,
    )


@full_length(16, 200)
def test_concurrent_commits_all_stand_and_no_read_is_torn(durable: Store, count: int) -> None:
    writers = 4
    fault_users.begin(durable, "ds", 0)
    seeds = range(1, count)
    processes = [
        PROCESSES.Process(
            target=fault_users.append_all, args=(durable, "ds", seeds[number::writers]), daemon=True
        )
        for number in range(writers)
    ]
    done = threading.Event()

    def read_while_they_write() -> list[int]:
        seen = []
        while not done.wait(0.01):  # leaves the writers a processor
            manifest = load_manifest(durable, "ds").manifest
            assert len(manifest.splits[0].shards) == manifest.version
            seen.append(manifest.version)
        return seen

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read_while_they_write) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        done.set()
        seen = [reader.result() for reader in readers]
    assert [process.exitcode for process in processes] == [0] * writers
    for versions in seen:
        assert versions == sorted(versions)
    assert list_versions(durable, "ds") == list(range(1, count + 1))
    assert_chain(durable, 1, count)
    newest = load_manifest(durable, "ds").manifest
    assert len({shard.xxh3 for shard in newest.splits[0].shards}) == count
    assert_sound(durable, "ds")


def assert_chain(root: Store, first: int, last: int) -> None:
    """Each version stands on the one before and adds one shard to it."""
    older = load_manifest(root, "ds", first)
    for version in range(first + 1, last + 1):
        newer = load_manifest(root, "ds", version)
        assert newer.manifest.parent == older.digest
        assert newer.manifest.splits[0].shards[:-1] == older.manifest.splits[0].shards
        older = newer


def kill_at_random(starts: Sequence[Callable[[Any], Any]], seconds: float) -> None:
    """Start processes (each start is given a connection to tell when), kill -9 all in a while."""
    running = []
    for start in starts:
        told, tell = PROCESSES.Pipe(duplex=False)
        process = start(tell)
        process.start()
        tell.close()
        running.append((process, told))
    for _, told in running:
        assert told.poll(60)
        told.recv()
    running[0][0].join(seconds)
    for process, told in running:
        assert process.is_alive(), "it ended by itself, before it was killed"
        process.kill()
        process.join()
        told.close()


@full_length(6, 100)
def test_killed_writers_leave_nothing_to_clean_by_hand(durable: Store, count: int) -> None:
    fault_users.begin(durable, "ds", 0)
    delays = np.random.default_rng(count).uniform(0, 0.15, count)
    version = 1
    for number, delay in enumerate(delays.tolist()):
        seed = 1000 * (number + 1)
        kill_at_random(
            [
                lambda tell, seed=seed: PROCESSES.Process(
                    target=fault_users.append_forever, args=(durable, "ds", seed, tell)
                )
            ],
            delay,
        )
        newest = list_versions(durable, "ds")[-1]
        assert_chain(durable, version, newest)
        version = newest
    fault_users.append(durable, "ds", 1)  # goes on as if nothing had been
    assert load_manifest(durable, "ds").manifest.version == version + 1
    assert version > count
    assert_sound(durable, "ds")
    folder = durable.child("ds")
    left = find_orphans(durable, "ds", min_age_seconds=0, now=time.time() + 10)
    for entry in left:
        folder.delete(entry.path)
    assert_sound(durable, "ds")
    assert list_versions(durable, "ds") == list(range(1, version + 2))
    named = {shard.path for shard in load_manifest(durable, "ds").manifest.splits[0].shards}
    assert set(folder.list("shards")) == named


@full_length(8, 100)
def test_killed_cache_users_leave_nothing_to_clean_by_hand(
    root: Store, tmp_path: Path, count: int
) -> None:
    shards: list[wire.Shard] = [
        write_shard(root, "ds", "train", rows_of(seed), SPEC).shard for seed in range(6)
    ]
    size = ShardCache(tmp_path / "one", 1).rows(root, "ds", shards[0], SPEC).file_bytes
    folder, limit = tmp_path / "cache", int(size * 2.5)
    delays = np.random.default_rng(count).uniform(0, 0.05, count // 2)
    for delay in delays.tolist():
        users = [
            lambda tell: PROCESSES.Process(
                target=fault_users.use_cache_forever, args=(root, folder, limit, shards, tell)
            )
        ]
        kill_at_random(users * 2, delay)
        cache = ShardCache(folder, limit)
        for seed, shard in enumerate(shards):
            assert_rows(cache.rows(root, "ds", shard, SPEC), rows_of(seed))
        assert cache.counters.refetches == 0
        assert list(folder.glob(".*.tmp")) == []
        assert sum(path.stat().st_size for path in folder.glob("*.rows")) <= limit
