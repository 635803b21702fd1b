"""Which rows a rank gets in a step, fetched through the node's cache. Knows neither Ray nor torch:
a fetch task then starts in a second rather than five, on every core of a cluster.

Each function depends on its arguments alone, so a retry, another process or another number of
workers gives the same bytes. The readers and the plan a process builds once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

from services.shards import tally
from services.shards.coefficients import CoefficientArray
from services.stream.account import Account
from services.stream.request import RowsRequest
from services.stream.sources import Sources
from services.types import IdArray, IntArray, MaskArray

_building = threading.Lock()

GROUP_ROWS = 4096
"""Rows of a share's steps that are read together. Planning and grouping by shard cost the same for
one step as for several; more would only add memory: 8 MB for grids of 32 x 32."""


@dataclass(frozen=True)
class Share:
    """One rank's rows of a step, as stored or cut; missing rows included, so all have one size.

    step: of the run. epoch: of the step; a round of all sources in a mixture.
    rows: (N,) int64, -1 where the row does not exist. row_epochs: (N,) int64, each row's own.
    ids: (N, h, w) uint16. label: (N,) int64. Both 0 where the row does not exist.
    account: what it cost so far.
    masks: (N, h, w) uint8 in pixels, or None where none were asked for.
    maps: (N, D, H, W) int16 coefficients, or None likewise.
    """

    step: int
    epoch: int
    rows: IntArray
    row_epochs: IntArray
    ids: IdArray
    label: IntArray
    account: Account
    masks: MaskArray | None = None
    maps: CoefficientArray | None = None


@lru_cache(maxsize=16)
def _open(request: RowsRequest) -> Sources:
    return Sources(request)


def opened(request: RowsRequest) -> Sources:
    """The sources of a request, built once even when several threads ask at the same time."""
    with _building:
        return _open(request)


def share_rows(request: RowsRequest, rank: int, world: int) -> int:
    """Rows of a rank's share of each step. InvalidInputError for a world that cannot share."""
    return len(opened(request).plan.rank_slots(rank, world)) * request.order.block_rows


def groups(
    request: RowsRequest, rank: int, world: int, steps: Sequence[int]
) -> Iterator[Sequence[int]]:
    """Steps that a rank of `world` reads together, in order."""
    size = max(1, GROUP_ROWS // share_rows(request, rank, world))
    return (steps[at : at + size] for at in range(0, len(steps), size))


def fetch_share(request: RowsRequest, step: int, rank: int, world: int) -> Share:
    """The rows of `step` that `rank` of `world` gets."""
    return fetch_shares(request, [step], rank, world)[0]


def fetch_shares(
    request: RowsRequest,
    steps: Sequence[int],
    rank: int,
    world: int,
    *,
    look_ahead: bool = True,
    ended: threading.Event | None = None,
) -> list[Share]:
    """The shares of some steps, which rise: what they cost stands in equal parts in their accounts,
    but for bytes and retries, which stand in the first one's.

    look_ahead: begin to fetch what is due later. Not where another process soon takes over.
    ended: of the stream, set when it wants them no more: CancelledError then, from a wait for
        shards. Several streams of a process, each with its own, do not disturb each other.
    """
    began, before = time.perf_counter(), tally.reading()
    sources = opened(request)
    plan = sources.plan
    slots = plan.rank_slots(rank, world)
    epochs_TJ, rows_TN = plan.step_rows(steps, slots)
    epochs_TN = np.repeat(epochs_TJ, request.order.block_rows, axis=1)
    taken = sources.take(rows_TN.reshape(-1), epochs_TN.reshape(-1), ended)
    if look_ahead:
        sources.look_ahead(steps[-1], slots, ended)
    cost = asdict(tally.reading() - before + sources.cost_ahead())
    spent = (time.perf_counter() - began) / len(steps)
    size = rows_TN.shape[1]
    shares = []
    for number, step in enumerate(steps):
        part = slice(number * size, (number + 1) * size)
        account = Account(storage_seconds=spent, lost=taken.lost, **(cost if not number else {}))
        shares.append(
            Share(
                step=step,
                epoch=step // plan.steps_per_epoch,
                rows=taken.rows[part],
                row_epochs=epochs_TN[number],
                ids=taken.ids[part],
                label=taken.labels[part],
                account=account,
                masks=None if taken.masks is None else taken.masks[part],
                maps=None if taken.maps is None else taken.maps[part],
            )
        )
    return shares
