"""Figures over a whole validation split, each row once; left off where the run is told to go."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from services.errors import InvalidInputError
from trainers.ranks import sum_over_ranks
from trainers.task import Task, WorkerContext


@torch.no_grad()
def measure(
    model: nn.Module,
    task: Task,
    context: WorkerContext,
    autocast: Callable[[], torch.autocast],
    every: int,
) -> dict[str, float] | None:
    """`validation_NAME` of each figure of the task, the same on all ranks; None after a stop.

    every: batches between looks at `context.should_stop` where ranks have to agree on it; one rank
    looks before each.

    Raises: InvalidInputError for a split without rows.
    """
    model.eval()
    sums = torch.zeros(len(task.figures) + 1, dtype=torch.float64, device=context.device)
    for number, batch in enumerate(context.open_validation()):
        # All ranks have as many batches, and sum here at the same ones.
        if (context.world == 1 or number % every == 0) and asked_to_stop(context):
            return None
        task.check(batch)
        moved = batch.to(context.device, non_blocking=True)
        with autocast():
            figures = task.evaluate(model, moved)
        sums += torch.cat([figures, moved.weight.sum()[None]]).double()
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


def asked_to_stop(context: WorkerContext) -> bool:
    """Whether any rank was asked to; all ranks have to call it."""
    asked = context.should_stop()
    if context.world == 1:
        return asked
    return bool(sum_over_ranks(torch.tensor(float(asked), device=context.device), context.world))
