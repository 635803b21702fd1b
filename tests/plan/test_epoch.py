from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import InvalidInputError
from services.plan.epoch import OrderSpec, Plan, RowPlan
from services.plan.sequential import SequentialPlan

quick = settings(deadline=None, max_examples=80)
WORLDS = range(1, 13)


@dataclass(frozen=True)
class Case:
    shard_rows: np.ndarray
    order: OrderSpec

    def plan(self) -> Plan:
        return Plan(self.shard_rows, self.order)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Small splits in every odd shape: empty shards, fewer rows than lanes, a rest or none."""
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=25))
    lanes, turns, block = (draw(st.integers(1, high)) for high in (4, 4, 6))
    order = OrderSpec(
        seed=draw(st.integers(0, 2**64 - 1)),
        global_batch_rows=lanes * turns * block,
        block_rows=block,
        lanes=lanes,
        window_shards=draw(st.integers(1, 6)),
    )
    shard_rows = np.array(sizes, dtype=np.int64)
    shard_rows[0] += shard_rows.sum() == 0
    return Case(shard_rows, order)


def epoch_rows(plan: RowPlan, epoch: int) -> np.ndarray:
    """(steps, blocks, B) of one epoch."""
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    return np.stack([[span.rows for span in plan.step_spans(step)] for step in steps])


def lane_of_slot(plan: RowPlan) -> np.ndarray:
    return np.arange(plan.blocks_per_step) % plan.order.lanes


# -- every row exactly once ---------------------------------------------------------------------


@quick
@given(case=cases(), epoch=st.integers(0, 1000))
def test_an_epoch_is_a_permutation_with_its_gaps_at_the_end(case: Case, epoch: int) -> None:
    plan = case.plan()
    rows = epoch_rows(plan, epoch).reshape(plan.steps_per_epoch, -1)  # (steps, G)
    assert plan.rows == case.shard_rows.sum()
    assert plan.steps_per_epoch == -(-plan.rows // case.order.global_batch_rows)
    np.testing.assert_array_equal(np.sort(rows[rows >= 0]), np.arange(plan.rows))
    assert (rows[:-1] >= 0).all()
    exists = rows[-1] >= 0
    np.testing.assert_array_equal(exists, np.sort(exists)[::-1])  # none after the first gap
    assert exists.any()


@quick
@given(case=cases())
def test_the_sequential_plan_visits_rows_in_order_once(case: Case) -> None:
    plan = SequentialPlan(case.shard_rows, case.order)
    rows = epoch_rows(plan, 0).reshape(-1)
    np.testing.assert_array_equal(rows[: plan.rows], np.arange(plan.rows))
    assert (rows[plan.rows :] == -1).all()
    assert len(rows) - plan.rows < case.order.global_batch_rows
    for step in (-1, plan.steps_per_epoch):
        with pytest.raises(InvalidInputError, match=rf"step={step} is outside"):
            plan.step_spans(step)


# -- any worker count, any position -------------------------------------------------------------


@quick
@given(case=cases(), step=st.integers(0, 10**6), sequential=st.booleans())
def test_ranks_share_out_a_step_whatever_their_number(
    case: Case, step: int, sequential: bool
) -> None:
    plan: RowPlan = case.plan()
    if sequential:
        plan, step = SequentialPlan(case.shard_rows, case.order), step % plan.steps_per_epoch
    whole = [span.rows.tolist() for span in plan.step_spans(step)]
    for world in WORLDS:
        if world > plan.blocks_per_step:
            with pytest.raises(InvalidInputError, match=rf"world={world} is outside of \[1, "):
                plan.rank_slots(0, world)
            continue
        shares = [plan.rank_slots(rank, world) for rank in range(world)]
        sizes = {len(share) for share in shares}
        assert max(sizes) - min(sizes) == (plan.blocks_per_step % world > 0)
        rows = [plan.span(step, slot).rows.tolist() for share in shares for slot in share]
        assert rows == whole


@quick
@given(case=cases(), start=st.integers(0, 10**9))
def test_any_position_is_reached_without_the_ones_before(case: Case, start: int) -> None:
    """A resume at any step, into the next epoch and back, sees what an unbroken run sees."""
    used = case.plan()
    for step in (start + used.steps_per_epoch, start + 1, start):
        fresh = case.plan().step_spans(step)
        for slot, (span, again) in enumerate(zip(used.step_spans(step), fresh, strict=True)):
            assert (span.step, span.slot, span.epoch) == (
                step,
                slot,
                step // used.steps_per_epoch,
            )
            np.testing.assert_array_equal(span.rows, again.rows)
            np.testing.assert_array_equal(span.rows, used.span(step, slot).rows)


@settings(quick, max_examples=20)
@given(case=cases())
def test_a_resume_at_every_step_gives_the_rest(case: Case) -> None:
    whole = case.plan()
    steps = range(min(2 * whole.steps_per_epoch + 1, 25))
    unbroken = [[span.rows.tolist() for span in whole.step_spans(step)] for step in steps]
    for cut in steps:
        fresh = case.plan()
        rest = [[s.rows.tolist() for s in fresh.step_spans(step)] for step in steps[cut:]]
        assert rest == unbroken[cut:]


@quick
@given(case=cases(), start=st.integers(0, 10**6), sequential=st.booleans(), data=st.data())
def test_steps_planned_together_are_those_planned_one_by_one(
    case: Case, start: int, sequential: bool, data: st.DataObject
) -> None:
    plan: RowPlan = case.plan()
    end = start + 7
    if sequential:
        plan, end = SequentialPlan(case.shard_rows, case.order), plan.steps_per_epoch
        start = start % end
    steps = range(start, data.draw(st.integers(start + 1, min(end, start + 7))))
    world = data.draw(st.sampled_from([w for w in WORLDS if w <= plan.blocks_per_step]))
    slots = plan.rank_slots(data.draw(st.integers(0, world - 1)), world)
    epochs, rows = plan.step_rows(steps, slots)
    for number, step in enumerate(steps):
        spans = plan.spans(step, slots)
        assert [span.epoch for span in spans] == epochs[number].tolist()
        np.testing.assert_array_equal(np.concatenate([s.rows for s in spans]), rows[number])


@quick
@given(case=cases(), steps=st.lists(st.integers(0, 10**6), min_size=1, max_size=5))
def test_blocks_of_any_steps_are_those_of_each(case: Case, steps: list[int]) -> None:
    plan = case.plan()
    slots = [step % plan.blocks_per_step for step in steps]
    epochs, rows = plan.blocks(np.array(steps), np.array(slots))
    for at, (step, slot) in enumerate(zip(steps, slots, strict=True)):
        span = plan.span(step, slot)
        assert epochs[at] == span.epoch
        np.testing.assert_array_equal(rows[at], span.rows)


def test_the_order_is_pinned() -> None:
    """A change of this order breaks every cursor in the world: refuse it by accident."""
    plan = Plan(np.array([5, 0, 9, 3, 7]), OrderSpec(11, 8, 2, 2, 2))
    spans = [plan.step_spans(step) for step in (0, 2, 3, 1000)]
    assert [np.concatenate([span.rows for span in step]).tolist() for step in spans] == [
        [20, 2, 8, 5, 21, 23, 13, 14],
        [1, 0, 12, 16, 4, 22, 9, 7],
        [3, 1, 10, 15, 4, 0, 7, 16],
        [18, 1, 10, 14, 2, 22, 8, 16],
    ]


# -- lanes, windows, shuffling ------------------------------------------------------------------


@quick
@given(case=cases(), epochs=st.tuples(st.integers(0, 99), st.integers(0, 99)))
def test_a_lane_keeps_its_rows_for_good(case: Case, epochs: tuple[int, int]) -> None:
    plan = case.plan()
    lane = lane_of_slot(plan)
    one, two = (epoch_rows(plan, epoch) for epoch in epochs)
    for number in range(case.order.lanes):
        rows = [np.sort(visit[:, lane == number].ravel()) for visit in (one, two)]
        np.testing.assert_array_equal(*rows)


@quick
@given(case=cases())
def test_lanes_share_only_the_shards_at_their_ends(case: Case) -> None:
    plan = case.plan()
    lane = lane_of_slot(plan)
    rows = epoch_rows(plan, 0)
    owned = 0
    for number in range(case.order.lanes):
        mine = rows[:, lane == number]
        owned += len(np.unique(plan.locate(mine[mine >= 0])[0]))
    assert owned <= (case.shard_rows > 0).sum() + case.order.lanes - 1


@quick
@given(case=cases(), epoch=st.integers(0, 99))
def test_a_lane_opens_few_shards_at_a_time(case: Case, epoch: int) -> None:
    """Cut a lane's stream where windows end: no piece between has more shards than a window."""
    plan = case.plan()
    lane = lane_of_slot(plan)
    rows = epoch_rows(plan, epoch)
    for number in range(case.order.lanes):
        stream = rows[:, lane == number].ravel()
        shards = plan.locate(stream[stream >= 0])[0]
        last_seen = {shard: at for at, shard in enumerate(shards)}
        opened: set[int] = set()
        for at, shard in enumerate(shards):
            opened.add(int(shard))
            assert len(opened) <= case.order.window_shards
            if max(last_seen[shard] for shard in opened) == at:
                opened.clear()


def test_windows_of_a_lane_are_of_nearly_equal_size() -> None:
    plan = Plan(np.full(9, 10), OrderSpec(1, 10, 10, 1, 8))
    shards = [set(plan.locate(rows.ravel())[0].tolist()) for rows in epoch_rows(plan, 0)]
    assert min(len(set.union(*half)) for half in (shards[:5], shards[5:])) >= 4


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    shard_rows = np.full(40, 25)
    order = OrderSpec(1, 40, 10, 2, 4)
    first = epoch_rows(Plan(shard_rows, order), 0).ravel()
    second = epoch_rows(Plan(shard_rows, order), 1).ravel()
    other = epoch_rows(Plan(shard_rows, OrderSpec(2, 40, 10, 2, 4)), 0).ravel()
    for order_of in (second, other, np.sort(first)):
        assert (first == order_of).mean() < 0.02


def test_every_row_of_a_lane_can_come_first() -> None:
    plan = Plan(np.full(6, 2), OrderSpec(5, 2, 1, 2, 2))
    firsts = {int(plan.span(epoch * plan.steps_per_epoch, 0).rows[0]) for epoch in range(400)}
    assert len(firsts) == 6


# -- rows and shards ----------------------------------------------------------------------------


@quick
@given(case=cases())
def test_locate_finds_every_row(case: Case) -> None:
    plan = case.plan()
    shard, inside = plan.locate(np.arange(-1, plan.rows))
    expected = [(s, i) for s, count in enumerate(case.shard_rows) for i in range(count)]
    assert list(zip(shard, inside, strict=True)) == [(-1, -1), *expected]
    blocks, _ = plan.locate(np.full((2, 3), -1))
    assert blocks.shape == (2, 3)
    for row in (-2, plan.rows):
        with pytest.raises(InvalidInputError, match="the split has no such row"):
            plan.locate(np.array([row]))


# -- scale --------------------------------------------------------------------------------------


def test_a_billion_rows_cost_the_memory_of_their_shards_only() -> None:
    shard_rows = np.full(122_000, 8_197)
    order = OrderSpec(3, 4096, 128, 8, 16)
    tracemalloc.start()
    try:
        plan = Plan(shard_rows, order)
        spans = plan.step_spans(987_654_321)
        plan.locate(np.stack([span.rows for span in spans]))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert plan.rows > 10**9
    assert peak_bytes < 50e6


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed is -1, it must be in"),
        ({"seed": 2**64}, "seed is 18446744073709551616, it must be in"),
        ({"global_batch_rows": 0}, "global_batch_rows=0 is outside of"),
        ({"block_rows": 0}, "block_rows=0 is outside of"),
        ({"lanes": -2}, "lanes=-2 is outside of"),
        ({"window_shards": 2**32}, "window_shards=4294967296 is outside of"),
        (
            {"block_rows": 5},
            "block_rows=5 does not divide .*choose one of 1, 2, 3, 4, 6, 8, 12, 24",
        ),
        ({"lanes": 4}, "lanes=4 does not divide the 6 blocks .*choose one of 1, 2, 3, 6"),
    ],
)
def test_an_order_that_cannot_be_is_refused(change: dict[str, int], message: str) -> None:
    good = {"seed": 1, "global_batch_rows": 24, "block_rows": 4, "lanes": 2, "window_shards": 1}
    assert OrderSpec(**good).blocks_per_step == 6
    with pytest.raises(InvalidInputError, match=message):
        OrderSpec(**{**good, **change})


def test_positions_and_shares_that_do_not_exist_are_refused() -> None:
    plan = Plan(np.array([30]), OrderSpec(1, 24, 2, 2, 1))
    with pytest.raises(InvalidInputError, match="step=-1 is negative"):
        plan.step_spans(-1)
    with pytest.raises(InvalidInputError, match=r"slot=12 is outside of \[0, 12\)"):
        plan.span(0, 12)
    with pytest.raises(
        InvalidInputError, match=r"world=13 is outside of \[1, 12\].* fewer workers"
    ):
        plan.rank_slots(0, 13)
    with pytest.raises(InvalidInputError, match=r"rank=3 is outside of \[0, 3\)"):
        plan.rank_slots(3, 3)
    with pytest.raises(InvalidInputError, match="world=0"):
        plan.rank_slots(0, 0)


@pytest.mark.parametrize("plan", [Plan, SequentialPlan])
def test_a_split_without_rows_is_refused(plan: type[RowPlan]) -> None:
    order = OrderSpec(1, 4, 2, 1, 1)
    for shard_rows in ([], [0, 0]):
        with pytest.raises(InvalidInputError, match="the split has no rows"):
            plan(np.array(shard_rows, dtype=np.int64), order)
    with pytest.raises(InvalidInputError, match="one non-negative number for each shard"):
        plan(np.array([3, -1]), order)
