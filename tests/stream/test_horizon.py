from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.plan import epoch
from services.plan.epoch import OrderSpec, Plan
from services.plan.sequential import SequentialPlan
from services.stream.horizon import Horizon, Needs

quick = settings(deadline=None, max_examples=15)


def order(seed: int = 0) -> OrderSpec:
    return OrderSpec(seed, global_batch_rows=24, block_rows=3, lanes=4, window_shards=3)


@quick
@given(seed=st.integers(0, 2**64 - 1), start=st.integers(0, 1000), ahead=st.integers(1, 7))
def test_all_that_ranks_read_is_needed_and_what_is_over_is_not(
    seed: int, start: int, ahead: int
) -> None:
    plan = Plan(np.random.default_rng(seed).integers(1, 30, 60), order(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch, "LOOK_AHEAD_ROWS", 24 * ahead)  # looks at every step
        horizon = Horizon(plan, None)
    ranks = [plan.rank_slots(rank, 2) for rank in range(2)]
    for step in range(start, start + 60):
        last = [horizon.at(step, slots) for slots in ranks]
        needs = last[-1]
        assert needs is not None
        read = np.concatenate([plan.open_shards(step, slots) for slots in ranks])
        assert set(read) <= set(needs.all)
        assert set(plan.open_shards(step + ahead, ranks[1])) == set(needs.later)
        near = range(max(start, step - 1), step + ahead + 1)
        open_near = [plan.open_shards(at, slots) for at in near for slots in ranks]
        assert set(needs.all) <= set(np.concatenate(open_near))
        assert horizon.at(step, ranks[0]) is None  # nothing new


def _last(horizon: Horizon, steps: range, slots: range) -> Needs:
    found = [needs for step in steps if (needs := horizon.at(step, slots))]
    return found[-1]


def test_ranks_of_an_earlier_world_are_forgotten() -> None:
    """Elastic training: the same process goes on reading, for other shares."""
    plan = Plan(np.full(4000, 50), order())
    horizon = Horizon(plan, None)
    _last(horizon, range(100), plan.rank_slots(0, 1))
    needs = _last(horizon, range(100, 6000), plan.rank_slots(1, 4))
    distance = epoch.LOOK_AHEAD_ROWS // 24
    alone = [plan.open_shards(step, plan.rank_slots(1, 4)) for step in range(4000, 6001 + distance)]
    assert set(needs.all) <= set(np.concatenate(alone))


def test_streams_far_apart_are_followed_each_by_itself() -> None:
    """Neither is taken for the other, at the same place or elsewhere, nor needed once it ended."""
    plan = Plan(np.full(4000, 50), order())
    together, one, slots = Horizon(plan, None), Horizon(plan, None), plan.rank_slots(0, 1)
    streams = {"near": 0, "beside": 0, "far": 7000}
    for step in range(3000):
        alone = one.at(step, slots)
        found = {name: together.at(start + step, slots, name) for name, start in streams.items()}
        for name in ("near", "beside"):
            assert (found[name] is None) == (alone is None)
            if alone is not None:
                assert set(alone.later) == set(found[name].later)
                assert set(alone.all) <= set(found[name].all)
    for name in ("beside", "far"):
        together.forget(name)
    alone, needs = _last(one, range(3000, 6000), slots), None
    for step in range(3000, 6000):
        needs = together.at(step, slots, "near") or needs
    assert needs is not None
    assert set(needs.all) == set(alone.all)


def test_a_finite_plan_is_followed_to_its_end() -> None:
    plan = SequentialPlan(np.full(500, 480), order())
    last = plan.steps_per_epoch - 1
    horizon = Horizon(plan, last)
    for step in range(plan.steps_per_epoch):
        needs = horizon.at(step, range(8))
        if needs is not None:
            due = min(step + epoch.LOOK_AHEAD_ROWS // 24, last)
            assert set(plan.open_shards(due, range(8))) <= set(needs.all)
    assert needs is None
    again = horizon.at(0, range(8))
    assert again is not None
    assert again.all.tolist() == sorted({0, *again.later.tolist()})
