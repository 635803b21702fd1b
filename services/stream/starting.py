"""One rank's steps through a cluster, the first of them made by this process while that starts.

Ray needs a second or more before its first task runs, and actors some five. Both make the same
tables, by the same functions.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from functools import partial
from itertools import islice

import pyarrow as pa

from services.stream.augmentation import augment_share
from services.stream.batch import pack_batch
from services.stream.ending import Ending
from services.stream.fetch import Share, opened, share_rows
from services.stream.order import merged
from services.stream.pipeline import free_cpus, tables
from services.stream.pool import Pool
from services.stream.request import StreamRequest
from services.stream.table import pack_share
from services.stream.threads import in_threads

_ROWS_AUGMENTED = 16_384  # what one process augments while actors start, some 5 s
_ROWS_ADAPTED = 1024  # the same where TokenAdapt's networks run


def head_steps(request: StreamRequest, rank: int, world: int, pool: Pool) -> int:
    """Steps that a rank's process makes itself while Ray starts; see Pool.head_start."""
    if request.only_cuts:
        return pool.head_start
    if pool.gpus:  # a run's batches are augmented on one kind of device
        return 0
    rows = _ROWS_ADAPTED if request.tokenadapt else _ROWS_AUGMENTED
    return min(pool.head_start, max(1, rows // share_rows(request.fetched, rank, world)))


def started_here(
    request: StreamRequest,
    rank: int,
    world: int,
    steps: range,
    pool: Pool,
    trainer_cpus: float,
    prefetch: int,
    ending: Ending,
) -> Generator[pa.Table, None, None]:
    """`tables` of the same, those of the first `head_steps` made by this process."""
    own = head_steps(request, rank, world, pool)
    here, there = steps[:own], steps[own:]
    on_cluster = tables(request, rank, world, there, pool, trainer_cpus, prefetch, ending)
    if not here:
        yield from on_cluster
        return
    # Refused now, not when the first batch of theirs is due and a part has been trained.
    free_cpus(pool, world, trainer_cpus, augments=not request.only_cuts)
    begun = head_start(request, rank, world, here, pool, prefetch)
    if there:
        yield from merged(steps, there, begun, on_cluster, ending.end)
    else:
        yield from begun


def head_start(
    request: StreamRequest, rank: int, world: int, steps: range, pool: Pool, prefetch: int
) -> Generator[pa.Table, None, None]:
    """What this process makes itself; then it holds nothing of the node's cache."""
    pack = partial(_packed, request)
    made = in_threads(request, rank, world, steps, prefetch, pack, instead_of=pool)
    try:
        with closing(made):
            yield from islice(made, len(steps) - 1)
            last = next(made)
    finally:
        opened(request.fetched).let_go()
    yield last


def _packed(request: StreamRequest, share: Share) -> pa.Table:
    """A share as tasks and actors would give it out."""
    return pack_share(share) if request.only_cuts else pack_batch(augment_share(request, share))
