from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import InvalidInputError
from services.plan import epoch as plan_epoch
from services.plan.epoch import OrderSpec, Plan
from services.plan.simulate import Rates, Scenario, shard_sizes, simulate
from services.shards.manifest import load_manifest
from services.shards.store import open_store
from services.stream.fetch import fetch_share
from services.stream.request import RowsRequest
from services.stream.sources import cache_at, pinned
from services.wire.seit import v1 as wire
from tests.plan.test_epoch import Case, cases
from tests.seit_command import Seit
from tests.small_datasets import write_dataset

quick = settings(deadline=None, max_examples=30)


@quick
@given(case=cases(), epoch=st.integers(0, 1000))
def test_windows_hold_the_shards_whose_rows_a_lane_gives(case: Case, epoch: int) -> None:
    plan = case.plan()
    lanes: list[list[int]] = [[] for _ in range(plan.order.lanes)]
    for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
        for slot, span in enumerate(plan.step_spans(step)):
            lanes[slot % plan.order.lanes] += span.rows[span.rows >= 0].tolist()
    windows = plan.window_shards(epoch)
    for rows, found in zip(lanes, windows, strict=True):
        begins = [round(begin * len(rows)) for begin, _ in found]
        assert begins == sorted(begins)
        assert (begins[0] == 0) if rows else (not found)
        for begin, end, (_, shards) in zip(begins, [*begins, len(rows)][1:], found, strict=True):
            seen = np.unique(plan.locate(np.array(rows[begin:end], np.int64))[0])
            np.testing.assert_array_equal(seen, shards)


def scenario(
    rows: int = 60_000, nodes: int = 2, per_node: int = 2, cache_share: float = 2.0, seed: int = 0
) -> Scenario:
    gpus = nodes * per_node
    return Scenario(
        rows=rows,
        shard_rows=100,
        nodes=nodes,
        gpus=gpus,
        cache_bytes=max(
            int(cache_share * rows * 50), 2 * per_node * 8 * 100 * 50
        ),  # and what is open
        order=OrderSpec(seed, gpus * 8, 8, gpus, 3),
        gpu_rows=100,
        cached_bytes=50,
        ahead_rows=500,
        rates=Rates(stored_bytes=25),
    )


@quick
@given(
    rows=st.integers(10_000, 60_000),
    nodes=st.sampled_from([1, 2, 4]),
    per_node=st.sampled_from([1, 2, 3]),
    share=st.floats(0.4, 1.2),
    seed=st.integers(0, 2**64 - 1),
)
def test_traffic_keeps_its_bounds(
    rows: int, nodes: int, per_node: int, share: float, seed: int
) -> None:
    asked = scenario(rows, nodes, per_node, share, seed)
    found = simulate(asked)
    parts = len(shard_sizes(rows, 100)) + asked.order.lanes  # a lane may share one with the next
    ahead = 6 * (asked.order.lanes + 3)  # shards of windows that begin within `ahead_rows`
    for number, epoch in enumerate(found.epochs):
        assert 0 <= epoch.hits <= 1
        assert epoch.requests <= epoch.uses <= parts + ahead
        assert sum(e.uses for e in found.epochs[: number + 1]) <= (number + 1) * parts + ahead
        assert epoch.busiest_node_bytes <= epoch.bytes <= epoch.busiest_node_bytes * nodes
        assert epoch.bytes <= epoch.requests * 100 * 25
    # The first epoch reads everything, less than a shard more for each end of a lane, and what it
    # fetches ahead for the second.
    assert found.stored_bytes <= found.epochs[0].bytes
    assert found.epochs[0].bytes <= found.stored_bytes + (asked.order.lanes + ahead) * 100 * 25
    larger = simulate(replace(asked, cache_bytes=3 * asked.cache_bytes + 10**7))
    assert larger.epochs[0].bytes <= found.epochs[0].bytes
    assert larger.epochs[1].bytes == 0  # everything fits


def test_lanes_that_several_nodes_read_are_fetched_by_each() -> None:
    """Block j comes from lane j mod lanes: with fewer lanes than blocks, nodes share lanes."""
    asked = scenario(nodes=2, per_node=1)
    shared = replace(asked, order=replace(asked.order, global_batch_rows=32))
    assert shared.order.blocks_per_step == 2 * shared.order.lanes
    assert simulate(shared).epochs[0].bytes == pytest.approx(2 * asked.rows * 25, rel=0.1)


def test_lanes_without_rows_fetch_nothing() -> None:
    """Of a split smaller than a step, whose first blocks are all that holds rows."""
    found = simulate(scenario(rows=20, nodes=2, per_node=2))
    assert found.epochs[0].requests >= 1
    assert found.stored_bytes <= found.epochs[0].bytes <= 4 * found.stored_bytes


def test_a_cache_of_half_the_share_hits_nearly_half() -> None:
    found = simulate(
        scenario(rows=300_000, per_node=1, cache_share=0.25)
    )  # of two nodes, each has half
    assert 0.4 < found.epochs[-1].hits < 0.5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gpus": 3}, "3 GPUs on 2 nodes"),
        ({"cache_bytes": 10_000}, "at least"),
        ({"rows": 0}, "rows is 0"),
        ({"gpu_rows": float("nan")}, "gpu_rows is nan"),
        ({"gpu_rows": float("inf")}, "gpu_rows is inf"),
        ({"cached_bytes": 1e300}, "cached_bytes is 1e"),
        ({"cache_bytes": 10**30}, "at most 9.22e"),
        ({"rows": 10**12}, "use larger shards"),
        ({"gpus": 6}, "6 GPUs do not divide"),
        ({"order": OrderSpec(0, 2**23, 8, 4, 3)}, "in 1,048,576 blocks .* at most"),
        ({"order": OrderSpec(0, 2**25, 2**20, 4, 3)}, "step of 33,554,432 rows"),
        ({"epochs": 10**6}, "1,000,000 epochs of 600 shards in 4 lanes"),
    ],
)
def test_what_no_run_can_be_is_refused(changes: dict[str, float], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        simulate(replace(scenario(), **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("shards_cached", [18, 30])
@pytest.mark.parametrize(("nodes", "processes"), [(1, 1), (2, 1), (1, 3)])
def test_real_caches_read_what_the_simulation_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: int, processes: int, shards_cached: int
) -> None:
    """Real shards through real caches, a folder a node, over three epochs. Several processes of a
    node read steps by turns, as fetch tasks do: what one fetched ahead, another must not push out.
    """
    # The stream looks ahead by a fixed number of rows, which is far less than a window of shards
    # of usual size, but would be many epochs of this dataset.
    monkeypatch.setattr(plan_epoch, "LOOK_AHEAD_ROWS", 16)
    spec = wire.TokenSpec(
        grid_height=8, grid_width=8, codes=64, channels=8, image_height=32, image_width=32
    )
    root = open_store(str(tmp_path / "data"))
    write_dataset(root, "small", rows=32, shards=40, spec=spec)
    order = OrderSpec(seed=5, global_batch_rows=16, block_rows=8, lanes=2, window_shards=1)
    probe = _request(root.url, order, 10**9, str(tmp_path / "probe-0"))
    fetch_share(probe, 0, 0, 1)
    entries = [p.stat().st_size for p in (tmp_path / "probe-0").glob("*.rows")]
    limit = shards_cached * max(entries)
    requests = [
        [
            _request(root.url, order, limit, str(tmp_path / f"node-{node}") + "/." * process)
            for process in range(processes)
        ]
        for node in range(nodes)
    ]
    stored = load_manifest(root, "small").manifest.splits[0].shards
    plan = Plan(np.array([shard.rows for shard in stored]), order)
    real = []
    for epoch in range(3):
        before = sum(_fetched(request) for own in requests for request in own)
        for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
            for rank, own in enumerate(requests):
                fetch_share(own[step // 3 % processes], step, rank, nodes)
        real.append(sum(_fetched(request) for own in requests for request in own) - before)
    found = simulate(
        Scenario(
            rows=1280,
            shard_rows=32,
            nodes=nodes,
            gpus=nodes,
            cache_bytes=limit,
            order=order,
            gpu_rows=1,
            cached_bytes=max(entries) / 32,
            ahead_rows=16,
            rates=Rates(stored_bytes=sum(shard.bytes for shard in stored) / 1280),
        )
    )
    said = [epoch.bytes for epoch in found.epochs]
    assert said[0] == pytest.approx(real[0], rel=0.02)
    # Later: which shards stay depends on the threads that fetch ahead, how many do not.
    whole = found.stored_bytes
    assert said[1:] == pytest.approx(real[1:], abs=0.08 * whole)


def _request(url: str, order: OrderSpec, limit: int, folder: str) -> RowsRequest:
    return RowsRequest((pinned(open_store(url), "small", "train"),), order, folder, limit)


def _fetched(request: RowsRequest) -> int:
    return cache_at(request.cache_dir, request.cache_bytes).counters.bytes_fetched


def test_the_command_says_what_the_plan_says(seit: Seit) -> None:
    done = seit("simulate", "--rows", "1.3M", "--nodes", "2", "--gpus", "8", "--cache", "20GB")
    assert done.code == 0
    assert "1,300,000 rows on 2 nodes" in done.out
    assert "1.31 GB in 159 shards" in done.out
    refused = seit("simulate", "--rows", "many", "--nodes", "2", "--gpus", "8")
    assert refused.code == 2
    assert "rows is 'many'" in refused.err


@pytest.mark.parametrize(
    ("name", "file", "figure"),
    [
        (
            "start_seconds",
            "stream_peers",
            "local_seit_ray_2_processes_first_batch_cold_seconds",
        ),
        ("decode_rows", "codec", "shards_images_per_second"),
        ("serve_rows", "stream_peers", "local_seit_rows_per_core_second"),
        ("stored_bytes", "codec", "file_bytes_per_image"),
    ],
)
def test_rates_are_those_that_were_measured(name: str, file: str, figure: str) -> None:
    results = Path(__file__).resolve().parents[2] / "benchmarks/results"
    measured = json.loads((results / f"{file}.2core-x86.json").read_text())["figures"][figure]
    assert getattr(Rates(), name) == pytest.approx(measured["value"], rel=0.001)
