from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from services.errors import InvalidInputError
from services.plan.epoch import OrderSpec, Plan
from services.plan.quality import shuffle_quality
from services.plan.sequential import SequentialPlan

SHARD_ROWS = np.full(64, 100)


def order(window_shards: int) -> OrderSpec:
    return OrderSpec(
        seed=4, global_batch_rows=128, block_rows=16, lanes=4, window_shards=window_shards
    )


def test_stored_order_does_not_travel() -> None:
    plan = SequentialPlan(SHARD_ROWS, order(1))
    quality = shuffle_quality(plan, range(plan.steps_per_epoch))
    assert quality.travel == 0
    assert 1 <= quality.shards_per_block < 2
    assert quality.shards_per_batch < 4


def test_a_wider_window_mixes_more_shards() -> None:
    measured = []
    for window in (1, 4, 16):
        plan = Plan(SHARD_ROWS, order(window))
        measured.append(shuffle_quality(plan, range(plan.steps_per_epoch)))
    for narrow, wide in pairwise(measured):
        assert narrow.shards_per_block < wide.shards_per_block
        assert narrow.shards_per_batch < wide.shards_per_batch
    assert all(0.8 < quality.travel < 1.2 for quality in measured)


def test_one_window_over_everything_is_a_full_shuffle() -> None:
    """One lane whose window holds all shards mixes a batch as a uniform shuffle would."""
    whole = OrderSpec(
        seed=4, global_batch_rows=128, block_rows=16, lanes=1, window_shards=len(SHARD_ROWS)
    )
    plan = Plan(SHARD_ROWS, whole)
    quality = shuffle_quality(plan, range(plan.steps_per_epoch))
    assert quality.shards_per_batch == pytest.approx(quality.full_shards_per_batch, rel=0.03)
    assert quality.travel == pytest.approx(1, abs=0.05)


def test_missing_rows_do_not_count() -> None:
    plan = Plan(np.array([3]), OrderSpec(1, 8, 2, 2, 1))
    quality = shuffle_quality(plan, [0])
    assert quality.shards_per_block == 1
    assert quality.shards_per_batch == 1
    assert quality.full_shards_per_batch == pytest.approx(1)


def test_no_steps_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="no steps were given"):
        shuffle_quality(Plan(SHARD_ROWS, order(1)), [])
