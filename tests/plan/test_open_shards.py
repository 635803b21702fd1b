from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import InvalidInputError
from services.plan.epoch import RowPlan
from services.plan.sequential import SequentialPlan
from tests.plan import test_epoch, test_mixture

quick = settings(deadline=None, max_examples=80)


@st.composite
def plans(draw: st.DrawFn) -> RowPlan:
    kind = draw(st.sampled_from(["shuffled", "mixture", "sequential"]))
    if kind == "mixture":
        return draw(test_mixture.cases()).plan()
    case = draw(test_epoch.cases())
    return case.plan() if kind == "shuffled" else SequentialPlan(case.shard_rows, case.order)


@quick
@given(plan=plans(), step=st.integers(0, 10**4), data=st.data())
def test_what_a_rank_reads_stands_in_open_shards(
    plan: RowPlan, step: int, data: st.DataObject
) -> None:
    if isinstance(plan, SequentialPlan):
        step %= plan.steps_per_epoch
    worlds = [world for world in test_epoch.WORLDS if world <= plan.blocks_per_step]
    world = data.draw(st.sampled_from(worlds))
    slots = plan.rank_slots(data.draw(st.integers(0, world - 1)), world)
    found = plan.open_shards(step, slots)
    np.testing.assert_array_equal(found, np.unique(found))
    rows = np.concatenate([span.rows for span in plan.spans(step, slots)])
    assert set(plan.locate(rows[rows >= 0])[0]) <= set(found)


@quick
@given(case=test_epoch.cases(), epoch=st.integers(0, 1000), data=st.data())
def test_open_are_the_windows_that_a_step_reaches_into(
    case: test_epoch.Case, epoch: int, data: st.DataObject
) -> None:
    plan = case.plan()
    lanes, block = plan.order.lanes, plan.order.block_rows
    turn = data.draw(st.integers(0, plan.steps_per_epoch - 1))
    slot = data.draw(st.integers(0, plan.blocks_per_step - 1))
    step = epoch * plan.steps_per_epoch + turn
    spans = [plan.span(epoch * plan.steps_per_epoch + at, s).rows
             for at in range(plan.steps_per_epoch) for s in range(slot % lanes,
             plan.blocks_per_step, lanes)]  # fmt: skip
    lane_rows = sum(int((rows >= 0).sum()) for rows in spans)
    begin = (turn * (plan.blocks_per_step // lanes) + slot // lanes) * block
    end = min(begin + block, lane_rows)
    windows = plan.window_shards(epoch)[slot % lanes]
    begins = [round(at * lane_rows) for at, _ in windows]
    wanted = {
        int(shard)
        for first, last, (_, shards) in zip(begins, [*begins, lane_rows][1:], windows, strict=True)
        if first < end and begin < last and begin < end
        for shard in shards
    }
    assert set(plan.open_shards(step, range(slot, slot + 1)).tolist()) == wanted


@quick
@given(case=test_mixture.cases(), step=st.integers(0, 10**4))
def test_a_mixture_has_a_window_of_each_source_open_in_each_lane(
    case: test_mixture.Case, step: int
) -> None:
    plan = case.plan()
    source, shard = plan.source_of(plan.open_shards(step, range(plan.blocks_per_step)))
    for number, own in enumerate(plan.plans):
        assert len(shard[source == number]) <= len(case.sources[number])
        windows = own.order.lanes * (plan.blocks_per_step // plan.order.lanes + 2)
        assert (
            source == number
        ).sum() <= windows * plan.order.window_shards * plan.order.block_rows


def test_steps_that_do_not_exist_have_no_shards_open() -> None:
    plan = SequentialPlan(np.array([10]), test_epoch.OrderSpec(0, 4, 2, 1, 1))
    for step in (-1, 3):
        with pytest.raises(InvalidInputError, match=f"step={step}"):
            plan.open_shards(step, range(2))
