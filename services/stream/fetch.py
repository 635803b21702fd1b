"""Which rows a rank gets in a step, fetched through the node's cache. Knows neither Ray nor torch:
a fetch task then starts in a second rather than five, on every core of a cluster.

Each function depends on its arguments alone, so a retry, another process or another number of
workers gives the same bytes. The reader and the plan a process builds once.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from services.plan.epoch import Plan, RowPlan, SequentialPlan
from services.shards.cache import ShardCache
from services.shards.reader import DatasetReader
from services.shards.store import open_store
from services.stream.request import RowsRequest
from services.stream.table import pack

_building = threading.Lock()


@lru_cache(maxsize=16)
def _cache_at(directory: str, limit_bytes: int) -> ShardCache:
    """The node's cache as this process sees it: one object, so that its counters add up."""
    return ShardCache(Path(directory), limit_bytes)


@lru_cache(maxsize=16)
def _open(request: RowsRequest) -> tuple[DatasetReader, RowPlan]:
    reader = DatasetReader(
        open_store(request.root),
        request.dataset,
        split=request.split,
        cache=_cache_at(request.cache_dir, request.cache_bytes),
        version=request.version,
    )
    kind = SequentialPlan if request.sequential else Plan
    return reader, kind(reader.shard_rows, request.order)


def opened(request: RowsRequest) -> tuple[DatasetReader, RowPlan]:
    """(reader, plan) of a request, built once even when several threads ask at the same time."""
    with _building:
        return _open(request)


def fetch_share(request: RowsRequest, step: int, rank: int, world: int) -> pa.Table:
    """The rows of `step` that `rank` of `world` gets, as stored: columns of `pack`, and `label`.

    Rows that do not exist (the tail of an epoch) are there with row -1 and zeros, so that every
    share has the same shape.
    """
    reader, plan = opened(request)
    spans = [plan.span(step, slot) for slot in plan.rank_slots(rank, world)]
    rows = np.concatenate([span.rows for span in spans])
    shard, inside = plan.locate(rows)
    there = rows >= 0
    spec = reader.spec
    ids = np.zeros((len(rows), spec.grid_height, spec.grid_width), np.uint16)
    label = np.zeros(len(rows), np.int64)
    if there.any():
        ids[there], label[there] = reader.take(shard[there], inside[there])
    return pack(step, spans[0].epoch, rows, ids, label=label)
