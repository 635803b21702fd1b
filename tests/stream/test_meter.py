"""What a stream says of itself: waits and their causes, states, and the cost of each share."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import StoreError
from services.shards import tally
from services.shards.store import LocalStore
from services.stream.account import Account
from services.stream.batch import StreamBatch
from services.stream.loader import Stream
from services.stream.meter import Meter
from services.stream.sources import cache_at
from services.wire.seit import v1 as wire

STEPS = 14
seconds = st.floats(0, 1e4)


def test_every_start_is_left_out_of_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared stream's, and that of the pipeline with which a consumer of it goes on alone."""
    clock = [0.0]
    monkeypatch.setattr("services.stream.meter.time.monotonic", lambda: clock[0])
    meter = Meter("a/train", 0, 1, 99)
    for step, waited in enumerate([3.0, 1.0, 50.0, 1.0, 70.0, 1.0]):
        if step in (1, 3):
            meter.taken_over(step + 1)
        clock[0] += waited
        meter.delivered(step, 6, waited)
    flow = meter.snapshot()
    assert flow.stall_seconds == 3.0
    assert flow.rows_per_second == pytest.approx(5 * 6 / 3.0)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(seconds, seconds, seconds, st.integers(0, 99)), min_size=1, max_size=20),
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(0, 20),
)
def test_a_wait_is_charged_in_proportion_to_what_the_batch_took(
    batches: list[tuple[float, float, float, int]], fetchers: int, augmenters: int, handover: int
) -> None:
    meter = Meter("a/train", 0, 1, 99, fetchers=fetchers, augmenters=augmenters)
    meter.taken_over(handover)
    for step, (waited, fetching, augmenting, rows) in enumerate(batches):
        account = Account(storage_seconds=fetching, augment_seconds=augmenting)
        meter.delivered(step, rows, waited, account)
    flow = meter.snapshot()
    storage = 0.0
    stalls = [each for step, each in enumerate(batches) if step not in (0, handover)]
    for waited, fetching, augmenting, _ in stalls:  # the others are start-up
        there, here = fetching / fetchers, augmenting / augmenters
        storage += waited * (there / (there + here) if there + here else 1.0)
    stalled = sum(waited for waited, *_ in stalls)
    assert flow.stall_seconds == pytest.approx(stalled)
    assert flow.stall_storage_seconds == pytest.approx(storage, abs=1e-6)
    both = flow.stall_storage_seconds + flow.stall_augmentation_seconds
    assert both == pytest.approx(stalled, abs=1e-6)
    assert flow.rows == sum(rows for *_, rows in batches)
    assert (flow.steps, flow.step, flow.step_target) == (len(batches), len(batches), 99)


def test_accounts_add_up() -> None:
    meter = Meter("a/train", 2, 3, 5)
    told = [
        Account(bytes_fetched=5, retries=1, lost=("x", "y"), restarted="n/1"),
        Account(bytes_hit=7, refetches=2, lost=("y",), restarted="n/1"),
        Account(bytes_fetched=11, bytes_hit=13, retries=3, lost=("z",), restarted="n/2"),
        Account(),
    ]
    for step, account in enumerate(told):
        meter.delivered(step, 4, 0.0, account)
    flow = meter.snapshot()
    assert (flow.bytes_fetched, flow.bytes_cached) == (16, 20)
    assert (flow.retries, flow.refetches, flow.actor_restarts) == (4, 2, 2)
    assert flow.quarantined == ["x", "y", "z"]
    assert (flow.stream, flow.rank, flow.workers, flow.state) == ("a/train", 2, 3, "running")


def test_states(world: Any) -> None:
    stream = Stream(world.request("crop"), stop=STEPS)
    assert (stream.flow().state, stream.flow().step) == ("running", 0)
    batches = iter(stream)
    next(batches)
    assert (stream.flow().state, stream.flow().step) == ("running", 1)
    batches.close()  # type: ignore[attr-defined]
    assert (stream.flow().state, stream.flow().step) == ("stopped", 1)

    whole = Stream(world.request("crop"), stop=STEPS)
    batches = iter(whole)
    for _ in range(STEPS):
        next(batches)
    batches.close()  # type: ignore[attr-defined]  # as a trainer does that knows its last step
    assert (whole.flow().state, whole.flow().steps) == ("finished", STEPS)

    missing = world.request("crop", cache_dir=str(world.cache / "missing"))
    (world.cache / "missing").write_text("no folder")
    with pytest.raises(StoreError, match="missing"):
        Stream(missing)


def test_a_resumed_stream_stands_where_it_begins(world: Any) -> None:
    stream = Stream(world.request("crop"), start=9, stop=STEPS)
    assert (stream.flow().step, stream.flow().state) == (9, "running")
    assert len(list(stream)) == STEPS - 9
    flow = stream.flow()
    assert (flow.step, flow.steps, flow.state) == (STEPS, STEPS - 9, "finished")
    nothing_left = Stream(world.request("crop"), start=STEPS, stop=STEPS)
    assert (nothing_left.flow().state, nothing_left.flow().step) == ("finished", STEPS)
    assert list(nothing_left) == []


def test_the_time_that_a_consumer_takes_is_not_a_stall(world: Any) -> None:
    stream = Stream(world.request("crop"), stop=STEPS)
    worked = []
    for batch in stream:
        began = time.monotonic()
        values = batch.inputs.numpy().astype(np.float64)
        while time.monotonic() - began < 0.01:
            values = np.sqrt(values + 1)
        worked.append(time.monotonic() - began)
    flow = stream.flow()
    # After the last batch nobody comes back for more within the stream's life.
    assert sum(worked[:-1]) <= flow.consumer_seconds
    assert flow.consumer_seconds + flow.stall_seconds <= flow.seconds
    assert flow.stall_seconds < flow.consumer_seconds


def test_a_slow_storage_is_named(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = LocalStore.read

    def slow(self: LocalStore, path: str) -> bytes:
        if path.startswith("shards/"):
            time.sleep(0.2)
        return read(self, path)

    monkeypatch.setattr(LocalStore, "read", slow)
    # A cache that holds one shard: nearly every step must read.
    request = world.request("finetune", cache_dir=str(tmp_path), cache_bytes=1)
    stream = Stream(request, stop=STEPS)
    assert len(list(stream)) == STEPS
    flow = stream.flow()
    assert flow.stall_storage_seconds > flow.stall_augmentation_seconds
    assert flow.stall_storage_seconds > 0.2
    assert flow.bytes_fetched > 3 * sum(s.bytes for s in world.datasets["tiny"].shards)


def test_a_slow_recipe_is_named(world: Any) -> None:
    request = world.request("mtm")
    recipe = replace(request.recipe, adapt=replace(request.recipe.adapt, share=1.0))
    stream = Stream(replace(request, recipe=recipe), stop=STEPS)
    list(Stream(world.request("crop"), stop=STEPS))  # so that the node has all shards
    assert len(list(stream)) == STEPS
    flow = stream.flow()
    assert flow.stall_seconds > 0
    assert flow.stall_augmentation_seconds > 2 * flow.stall_storage_seconds


class _Flaky:
    """Every shard's first read meets a lost connection, its second gives a flipped bit."""

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()
        self.resets = self.flips = 0
        self._guard = threading.Lock()

    def read(self, store: LocalStore, path: str) -> bytes:
        def once() -> bytes:
            data = (Path(store.url) / path).read_bytes()
            if not path.startswith("shards/"):
                return data
            with self._guard:
                self.reads[path] += 1
                turn = self.reads[path] % 4
                self.resets += turn == 1
                self.flips += turn == 2
            if turn == 1:
                raise ConnectionResetError("the peer went away")
            return data if turn != 2 else data[:-1] + bytes([data[-1] ^ 1])

        return store._run("read", path, once)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(seconds, seconds, seconds), min_size=2, max_size=20))
def test_a_consumer_that_augments_itself_waits_for_all_of_that(
    batches: list[tuple[float, float, float]],
) -> None:
    meter = Meter("a/train", 0, 1, 99, fetchers=4, augmenters=0)
    for step, (beside, fetching, augmenting) in enumerate(batches):
        account = Account(storage_seconds=fetching, augment_seconds=augmenting)
        meter.delivered(step, 8, augmenting + beside, account)  # `beside`: of it, for rows
    flow = meter.snapshot()
    assert flow.stall_storage_seconds == pytest.approx(sum(b for b, _, _ in batches[1:]), abs=1e-6)
    assert flow.stall_augmentation_seconds == pytest.approx(
        sum(a for _, _, a in batches[1:]), abs=1e-6
    )


@pytest.mark.parametrize("cache_bytes", [1, 10**8])
def test_the_shares_of_several_threads_cost_what_store_and_cache_count(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_bytes: int
) -> None:
    flaky = _Flaky()
    # What was fetched ahead is charged to a later group of steps: there must be some.
    monkeypatch.setattr("services.stream.fetch.GROUP_ROWS", 1)
    monkeypatch.setattr(LocalStore, "read", lambda self, path: flaky.read(self, path))
    monkeypatch.setattr("services.shards.retry.RetryPolicy.pause_seconds", lambda *_: 0.001)
    request = world.request("crop", cache_dir=str(tmp_path), cache_bytes=cache_bytes)
    stream = Stream(request, stop=STEPS, prefetch=8)
    batches: list[StreamBatch] = list(stream)
    accounts = [batch.account for batch in batches]
    counted = cache_at(str(tmp_path), cache_bytes).counters
    for name in ("bytes_fetched", "bytes_hit", "refetches"):
        assert sum(getattr(account, name) for account in accounts) == getattr(counted, name)
    assert sum(account.retries for account in accounts) == flaky.resets
    assert counted.refetches == flaky.flips > 0
    flow = stream.flow()
    assert (flow.retries, flow.refetches) == (flaky.resets, flaky.flips)
    assert (flow.bytes_fetched, flow.bytes_cached) == (counted.bytes_fetched, counted.bytes_hit)
    assert all(account.storage_seconds > 0 for account in accounts)


def test_a_second_process_pays_nothing_for_what_the_node_has(world: Any, tmp_path: Path) -> None:
    first = world.request("crop", cache_dir=str(tmp_path))
    list(Stream(first, stop=7))
    # Another limit is another cache object over the same folder, as in another process.
    stream = Stream(replace(first, rows=replace(first.rows, cache_bytes=10**8 + 1)), stop=7)
    list(stream)
    flow = stream.flow()
    size = sum(shard.bytes for shard in world.datasets["tiny"].shards)
    assert (flow.bytes_fetched, flow.bytes_cached) == (0, size)


def test_a_thread_counts_its_own_work_alone() -> None:
    together = threading.Barrier(4)

    def work(amount: int) -> tally.Reading:
        before = tally.reading()
        together.wait(timeout=30)
        for _ in range(200):
            tally.note(bytes_fetched=amount, retries=1)
            tally.note(bytes_hit=2 * amount, refetches=amount)
        return tally.reading() - before

    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):  # the same threads again: differences, not totals
            found = list(pool.map(work, range(4)))
            assert found == [tally.Reading(200 * n, 400 * n, 200, 200 * n) for n in range(4)]
    assert tally.reading() - tally.reading() == tally.Reading()


def test_a_flow_travels_whole(world: Any) -> None:
    stream = Stream(world.request("eval"))
    list(stream)
    flow = stream.flow()
    assert wire.Flow.parse(bytes(flow)) == flow
    assert wire.Flow.from_json(flow.to_json()) == flow
