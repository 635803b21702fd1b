"""Figures over a whole validation split, each row once; left off where the run is told to go."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from services.errors import InvalidInputError
from trainers.ranks import sum_over_ranks
from trainers.task import Task, WorkerContext
from trainers.waiting import Batches


@torch.no_grad()
def measure(
    model: nn.Module,
    task: Task,
    context: WorkerContext,
    autocast: Callable[[], torch.autocast],
    batches: Batches,
) -> dict[str, float] | None:
    """`validation_NAME` of each figure of the task, the same on all ranks; None after a stop.

    batches: this rank's share of the split; all ranks have as many, and sum after the last one.

    Raises: InvalidInputError for a split without rows.
    """
    model.eval()
    sums = torch.zeros(len(task.figures) + 1, dtype=torch.float64, device=context.device)
    while (batch := batches.next()) is not None:
        task.check(batch)
        moved = batch.to(context.device, non_blocking=True)
        with autocast():
            figures = task.evaluate(model, moved)
        sums += torch.cat([figures, moved.weight.sum()[None]]).double()
    if batches.stopped:
        return None
    *totals, weight = sum_over_ranks(sums, context.world).tolist()
    if not weight:
        raise InvalidInputError(
            "the validation split has no rows: nothing could tell how good the model is; name"
            " another split (--data.validation-split), or set a share of the pictures apart"
            " (--pictures.validation-fraction)"
        )
    found = {
        f"validation_{name}": total / weight
        for name, total in zip(task.figures, totals, strict=True)
    }
    further = task.validated(context.world)
    return found | {f"validation_{name}": value for name, value in further.items()}
