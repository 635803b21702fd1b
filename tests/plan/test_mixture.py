from __future__ import annotations

import math
import tracemalloc
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import InvalidInputError
from services.plan.epoch import OrderSpec, Plan
from services.plan.mixture import CYCLE, MixturePlan, plan_of, shares_of

quick = settings(deadline=None, max_examples=20)
WORLDS = range(1, 13)


@dataclass(frozen=True)
class Case:
    sources: list[np.ndarray]
    weights: list[float]
    order: OrderSpec

    def plan(self) -> MixturePlan:
        return MixturePlan(self.sources, self.order, self.weights)

    @property
    def rows(self) -> list[int]:
        return [int(shards.sum()) for shards in self.sources]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Sources of very different sizes and shares: some fill the lanes, some not even a block."""
    count = draw(st.integers(1, 3))
    sources = [
        np.array(draw(st.lists(st.integers(0, 20), min_size=1, max_size=9))) for _ in range(count)
    ]
    for shards in sources:
        shards[0] += shards.sum() == 0
    if draw(st.booleans()):
        sources[-1] = sources[-1] + draw(st.integers(20, 40))
    weights = draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    lanes, turns, block = (draw(st.integers(1, high)) for high in (4, 3, 3))
    order = OrderSpec(
        seed=draw(st.integers(0, 2**64 - 1)),
        global_batch_rows=lanes * turns * block,
        block_rows=block,
        lanes=lanes,
        window_shards=draw(st.integers(1, 4)),
    )
    return Case(sources, [float(weight) for weight in weights], order)


def sources_of(plan: MixturePlan, step: int) -> list[int]:
    """The source of each block of a step; -1 for a block without rows."""
    rows = np.stack([span.rows for span in plan.step_spans(step)])  # (J, B)
    source = plan.place(rows)[0]
    assert all(len(set(block[block >= 0].tolist())) < 2 for block in source)
    return [int(block.max()) for block in source]


# -- every source has its epochs ----------------------------------------------------------------


@settings(quick, max_examples=12)
@given(case=cases())
def test_each_epoch_of_each_source_is_a_permutation(case: Case) -> None:
    plan = case.plan()
    begin = np.cumsum([0, *case.rows])
    seen: dict[tuple[int, int], list[int]] = defaultdict(list)
    latest = [0] * len(case.rows)
    step = 0
    # Lanes end an epoch a few turns apart: once one lane is in epoch 3, all have done with 0 and 1.
    while min(latest) < 3:
        spans = plan.step_spans(step)
        for span, number in zip(spans, sources_of(plan, step), strict=True):
            if number >= 0:
                seen[number, span.epoch] += span.rows[span.rows >= 0].tolist()
                latest[number] = max(latest[number], span.epoch)
        step += 1
    for number, rows in enumerate(case.rows):
        for epoch in (0, 1):
            assert sorted(seen[number, epoch]) == list(range(begin[number], begin[number] + rows))
    orders = [tuple(seen[number, 0]) != tuple(seen[number, 1]) for number in range(len(case.rows))]
    assert all(orders) or min(case.rows) < 12


@quick
@given(case=cases())
def test_a_source_comes_as_its_own_plan_gives_it(case: Case) -> None:
    """Lane by lane, the blocks of a source are those of its own plan, none left out or repeated."""
    plan = case.plan()
    begin = np.cumsum([0, *case.rows])
    for number, own in enumerate(plan.plans):
        lanes = own.order.lanes
        given_by_lane: dict[int, int] = defaultdict(int)
        for step in range(12):
            for span in plan.step_spans(step):
                lane = span.slot % case.order.lanes
                turn = (
                    step * plan.blocks_per_step // case.order.lanes + span.slot // case.order.lanes
                )
                if plan._owner[lane, turn % CYCLE] != number:
                    continue
                expected = own.span(given_by_lane[lane % lanes], lane % lanes)
                given_by_lane[lane % lanes] += 1
                rows = np.where(expected.rows < 0, -1, expected.rows + begin[number])
                np.testing.assert_array_equal(span.rows, rows)
                assert span.epoch == expected.epoch


@quick
@given(case=cases())
def test_few_rows_are_missing(case: Case) -> None:
    for own, rows in zip(case.plan().plans, case.rows, strict=True):
        blocks = own.steps_per_epoch * own.blocks_per_step
        filled = -(-rows // case.order.block_rows)
        assert blocks - filled <= filled / 64
        assert case.order.lanes % own.order.lanes == 0


# -- weights ------------------------------------------------------------------------------------


@quick
@given(st.lists(st.integers(1, 400), min_size=1, max_size=9))
def test_shares_hold_to_one_block_of_a_cycle(weights: list[int]) -> None:
    shares = shares_of(weights)
    assert shares.sum() == CYCLE
    for share, weight in zip(shares.tolist(), weights, strict=True):
        assert abs(share - Fraction(weight, sum(weights)) * CYCLE) < 1 + Fraction(1, 10**6)
    for scale in (0.1, 1 / 3, 1e6):
        np.testing.assert_array_equal(shares_of([weight * scale for weight in weights]), shares)
    for power in (-1060, 1014):  # as far as numbers go: of some, the sum is beyond
        scaled = [math.ldexp(weight, power) for weight in weights]
        np.testing.assert_array_equal(shares_of(scaled), shares)


@pytest.mark.parametrize(
    ("weights", "lanes", "turns"),
    [
        ((1, 1), 1, 4),
        ((3, 1), 4, 1),
        ((7, 1), 8, 1),  # as many lanes as places between two of the rarer source
        ((5, 2, 1), 8, 2),
        ((1, 1, 1, 1, 1), 3, 1),
        ((1, 200), 6, 2),
        (tuple(range(1, 13)), 8, 4),
    ],
)
def test_a_mixture_is_even_over_any_stretch(
    weights: tuple[float, ...], lanes: int, turns: int
) -> None:
    """Each step has every source to a block, and no lane runs ahead with any of them."""
    order = OrderSpec(5, lanes * turns, 1, lanes, 2)
    plan = MixturePlan([np.full(64, lanes)] * len(weights), order, weights)
    shares = plan.shares / CYCLE
    steps = 150
    # No source has rows missing here, so every block is seen.
    turn_lane = np.array([sources_of(plan, step) for step in range(steps)]).reshape(-1, lanes)
    is_of = turn_lane[:, :, None] == np.arange(len(weights))  # (turns, L, D)
    assert np.abs(is_of.sum(axis=1) - lanes * shares).max() <= 1 + 1e-9
    ahead = (is_of - shares).cumsum(axis=0)  # (turns, L, D) blocks
    assert np.abs(ahead).max() < 4
    assert np.abs(ahead.sum(axis=1)).max() < 12


@pytest.mark.parametrize(
    ("lanes", "most"),
    [(8, 12), (12, 12), (32, 12), (256, 12), (13, 16.25), (48, 60), (144, 180), (233, 291.25)],
)
@pytest.mark.parametrize("weights", [(3386, 795), (1205, 1488, 1488), (653, 3528)])
def test_no_source_gets_far_ahead_over_a_whole_cycle(
    weights: tuple[int, ...], lanes: int, most: float
) -> None:
    """As docs/stream.md says. Where a turn's places nearly repeat, as with 48 lanes after three
    turns and with 144 after one, a source's odd block does, too."""
    rows = 64 * lanes  # as many blocks as its lanes want: none is without rows
    plan = MixturePlan([np.array([rows])] * len(weights), OrderSpec(5, lanes, 1, lanes, 2), weights)
    steps, slots = np.divmod(np.arange(CYCLE * lanes), lanes)
    source = plan.place(plan.blocks(steps, slots)[1][:, 0])[0].reshape(CYCLE, lanes)
    for number, share in enumerate(plan.shares):
        each = (source == number).sum(axis=1) - lanes * share / CYCLE  # blocks of a turn
        ahead = np.append(0, each.cumsum())
        assert np.abs(each).max() <= 1 + 1e-9
        assert ahead.max() - ahead.min() <= most


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_cycle_has_each_source_by_its_share_in_every_lane(lanes: int) -> None:
    turns = 37
    plan = MixturePlan(
        [np.full(256, 1), np.full(1024, 1)], OrderSpec(9, lanes * turns, 1, lanes, 1), [1.0, 2.7]
    )
    start = 12_345  # any stretch as long as a cycle will do
    found = [sources_of(plan, step) for step in range(start, start + CYCLE // turns)]
    by_lane = np.array(found).reshape(CYCLE, lanes)
    counts = np.stack([np.bincount(column, minlength=2) for column in by_lane.T])  # (L, 2)
    np.testing.assert_array_equal(counts, np.tile(plan.shares, (lanes, 1)))


def test_weights_are_the_rows_where_none_are_given() -> None:
    order = OrderSpec(1, 8, 2, 2, 2)
    sources = [np.array([30]), np.array([20, 40])]
    assert (MixturePlan(sources, order).shares == MixturePlan(sources, order, [1, 2]).shares).all()


def test_a_round_visits_as_many_rows_as_there_are() -> None:
    plan = MixturePlan([np.array([30]), np.array([20, 41])], OrderSpec(1, 8, 2, 2, 2), [5, 1])
    assert (plan.rows, plan.steps_per_epoch) == (91, 12)


# -- any worker count, any position -------------------------------------------------------------


@quick
@given(case=cases(), step=st.integers(0, 10**9))
def test_ranks_share_out_a_step_whatever_their_number(case: Case, step: int) -> None:
    plan = case.plan()
    whole = [span.rows.tolist() for span in plan.step_spans(step)]
    for world in WORLDS:
        if world > plan.blocks_per_step:
            continue
        shares = [plan.rank_slots(rank, world) for rank in range(world)]
        rows = [span.rows.tolist() for share in shares for span in plan.spans(step, share)]
        assert rows == whole


@settings(quick, max_examples=8)
@given(case=cases())
def test_a_resume_at_every_step_gives_the_rest(case: Case) -> None:
    whole = case.plan()
    steps = range(min(2 * whole.steps_per_epoch + 2, 30))
    unbroken = [[(s.epoch, *s.rows.tolist()) for s in whole.step_spans(step)] for step in steps]
    for cut in steps:
        fresh = case.plan()
        rest = [
            [(s.epoch, *s.rows.tolist()) for s in fresh.step_spans(step)]
            for step in range(cut, min(cut + 3, len(steps)))
        ]
        assert rest == unbroken[cut : cut + 3]


def test_a_run_may_look_back() -> None:
    """Prefetching threads ask out of order, and around the ends of epochs."""
    case = Case([np.full(5, 7), np.full(3, 4)], [2.0, 1.0], OrderSpec(3, 8, 2, 4, 2))
    used = case.plan()
    forward = [[s.rows.tolist() for s in used.step_spans(step)] for step in range(40)]
    backward = [[s.rows.tolist() for s in used.step_spans(step)] for step in reversed(range(40))]
    assert forward == backward[::-1]


def test_the_order_is_pinned() -> None:
    """A change of this order breaks every cursor of a mixture: refuse it by accident."""
    plan = MixturePlan(
        [np.array([5, 0, 9, 3]), np.array([4, 7])], OrderSpec(11, 8, 2, 2, 2), [2, 1]
    )
    spans = [plan.step_spans(step) for step in (0, 3, 1000)]
    assert [np.concatenate([span.rows for span in step]).tolist() for step in spans] == [
        [24, 27, 0, 2, 16, 14, 22, 18],
        [5, 10, 12, -1, 8, 6, 17, -1],
        [21, 18, 5, 2, 9, 3, 7, 8],
    ]
    assert [[span.epoch for span in step] for step in spans] == [
        [0, 0, 0, 0],
        [0, 0, 1, 0],
        [222, 296, 296, 296],
    ]


# -- lanes --------------------------------------------------------------------------------------


def test_a_lane_reads_the_same_shards_of_a_large_source_in_every_epoch() -> None:
    order = OrderSpec(2, 128, 4, 8, 2)
    plan = MixturePlan([np.full(32, 64), np.full(2, 20)], order, [3, 1])
    assert [own.order.lanes for own in plan.plans] == [8, 1]
    shards: dict[tuple[int, int], set[int]] = defaultdict(set)
    for step in range(4 * plan.steps_per_epoch):
        for span in plan.step_spans(step):
            source, shard, _ = plan.place(span.rows)
            if source[0] == 0:
                shards[span.slot % 8, min(span.epoch, 1)].update(shard.tolist())
    for lane in range(8):
        assert shards[lane, 0] == shards[lane, 1]
        assert len(shards[lane, 0]) <= 5  # of 32: an eighth, and parts at its ends


# -- rows and shards ----------------------------------------------------------------------------


@quick
@given(case=cases())
def test_place_finds_source_shard_and_row(case: Case) -> None:
    plan = case.plan()
    source, shard, inside = plan.place(np.arange(-1, plan.rows))
    expected = [
        (d, s, i)
        for d, shards in enumerate(case.sources)
        for s, count in enumerate(shards)
        for i in range(count)
    ]
    assert list(zip(source, shard, inside, strict=True)) == [(-1, -1, -1), *expected]
    number, _ = plan.locate(np.arange(plan.rows))
    assert number.max() < plan.source_shards[-1] == len(plan.shard_rows)


def test_a_single_source_has_a_plan_of_its_own() -> None:
    order = OrderSpec(1, 8, 2, 2, 2)
    alone = plan_of([np.array([30])], order, [4.0])
    assert type(alone) is Plan
    expected = Plan(np.array([30]), order).span(2, 1)
    np.testing.assert_array_equal(alone.span(2, 1).rows, expected.rows)
    source, _, _ = alone.place(np.array([-1, 0, 29]))
    assert source.tolist() == [-1, 0, 0]
    assert type(plan_of([np.array([30])] * 2, order)) is MixturePlan


# -- scale, and what is refused -----------------------------------------------------------------


def test_a_billion_rows_cost_the_memory_of_their_shards_only() -> None:
    sources = [np.full(61_000, 8_197), np.full(40_000, 8_197), np.full(21_000, 8_197)]
    tracemalloc.start()
    try:
        plan = MixturePlan(sources, OrderSpec(3, 4096, 128, 8, 16))
        plan.place(np.stack([span.rows for span in plan.step_spans(987_654_321)]))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert plan.rows > 10**9
    assert peak_bytes < 50e6


@pytest.mark.parametrize(
    ("sources", "weights", "message"),
    [
        ([], [], "mixture of 0 sources got 0 weights"),
        ([[3], [4]], [1.0], "mixture of 2 sources got 1 weights"),
        ([[3], [4]], [1.0, 0.0], "each must be finite and above 0"),
        ([[3], [4]], [1.0, float("nan")], "each must be finite"),
        ([[3], [4]], [1.0, 1e-6], r"weight 1e-06 of source 1 is 1e-06 of all: at least 0.00024"),
        ([[3_000_000], [4]], [], "weight 4 of source 1 .*leave it out"),
        ([[3], [0, 0]], [1.0, 1.0], "source 1 of the mixture has no rows"),
        ([[0], [0]], [], "no rows"),
        ([[3], [-1]], [], "one non-negative number for each shard"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(
    sources: list[list[int]], weights: list[float], message: str
) -> None:
    arrays = [np.array(shards, dtype=np.int64) for shards in sources]
    with pytest.raises(InvalidInputError, match=message):
        MixturePlan(arrays, OrderSpec(1, 8, 2, 2, 2), weights)


def test_too_many_lanes_and_steps_that_do_not_exist_are_refused() -> None:
    sources = [np.array([30]), np.array([20])]
    with pytest.raises(InvalidInputError, match="lanes=512 is more than the 256"):
        MixturePlan(sources, OrderSpec(1, 512, 1, 512, 1))
    plan = MixturePlan(sources, OrderSpec(1, 8, 2, 2, 2))
    with pytest.raises(InvalidInputError, match="step=-1 is negative"):
        plan.step_spans(-1)
    with pytest.raises(InvalidInputError, match=r"slot=4 is outside of \[0, 4\)"):
        plan.span(0, 4)
