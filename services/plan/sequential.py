"""Rows in their stored order, for evaluation."""

from __future__ import annotations

import numpy as np

from services.errors import InvalidInputError
from services.plan.epoch import RowPlan
from services.types import IntArray


class SequentialPlan(RowPlan):
    """Rows in stored order, once: for evaluation. Seed, lanes and window have no effect."""

    def _check_step(self, step: int) -> None:
        if not 0 <= step < self.steps_per_epoch:
            raise InvalidInputError(
                f"step={step} is outside of [0, {self.steps_per_epoch}): rows are visited once; "
                "stop after steps_per_epoch steps"
            )

    def blocks(self, steps: IntArray, slots: IntArray) -> tuple[IntArray, IntArray]:
        block = self.order.block_rows
        inside = np.arange(block)  # (B,)
        begin = steps * self.order.global_batch_rows + slots * block  # (J,)
        present = self._present(steps, slots)  # (J,)
        rows = np.where(inside < present[:, None], begin[:, None] + inside, -1)  # (J, B)
        return np.zeros(len(slots), dtype=np.int64), rows

    def block_shards(self, steps: IntArray, slots: IntArray) -> IntArray:
        _, rows = self.blocks(steps, slots)
        return np.unique(self.locate(rows[rows >= 0])[0])
