"""How well a plan shuffles, against a shuffle of the whole split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from services.errors import InvalidInputError
from services.plan.epoch import RowPlan


@dataclass(frozen=True)
class ShuffleQuality:
    """Means over the steps that were looked at. A full shuffle has travel near 1.

    travel: distance of a row's place in the epoch from its stored place, as a share of the
        distance that a full shuffle gives on average (a third of the split); 0 is stored order.
    shards_per_block, shards_per_batch: different shards among the rows of one.
    full_shards_per_batch: what a full shuffle would mix into a batch.
    """

    travel: float
    shards_per_block: float
    shards_per_batch: float
    full_shards_per_batch: float


def shuffle_quality(plan: RowPlan, steps: Iterable[int]) -> ShuffleQuality:
    """Measure some steps of a plan. Raises InvalidInputError if there are none.

    Of a mixture, measure each of `MixturePlan.plans`: only a source has a stored order.
    """
    travels: list[float] = []
    in_block: list[int] = []
    in_batch: list[int] = []
    for step in steps:
        rows = np.stack([span.rows for span in plan.step_spans(step)])  # (slots, B)
        exists = rows >= 0
        begin = (step % plan.steps_per_epoch) * plan.order.global_batch_rows
        place = begin + np.arange(rows.size).reshape(rows.shape)  # (slots, B)
        travels.append(float(np.abs(rows - place)[exists].mean()) / (plan.rows / 3))
        shards = plan.locate(rows)[0]  # (slots, B), -1 where there is no row
        blocks = zip(shards, exists, strict=True)
        in_block += [len(np.unique(shard[real])) for shard, real in blocks if real.any()]
        in_batch.append(len(np.unique(shards[exists])))
    if not travels:
        raise InvalidInputError("no steps were given: nothing can be measured; pass at least one")
    absent = (1 - plan.shard_rows / plan.rows) ** plan.order.global_batch_rows  # (S,)
    return ShuffleQuality(
        travel=float(np.mean(travels)),
        shards_per_block=float(np.mean(in_block)),
        shards_per_batch=float(np.mean(in_batch)),
        full_shards_per_batch=float((1 - absent).sum()),
    )
