"""The steps of a plan as a Ray Data source.

Fetch tasks import this module alone, not the pipeline: a process that only fetches then starts
without torch, some seconds earlier.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.data.context import DataContext

from services.stream.account import Account
from services.stream.fetch import Share, fetch_shares, groups, opened, share_rows
from services.stream.interrupted import give_back_locks
from services.stream.request import RowsRequest
from services.stream.table import pack_share


class StepsDatasource(Datasource):
    """Steps of one rank's share in their order, `task_steps` of them a read task."""

    def __init__(
        self, request: RowsRequest, rank: int, world: int, steps: Sequence[int], task_steps: int
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._request, self._rank, self._world = request, rank, world
        self.share_rows = share_rows(request, rank, world)
        own = opened(request)
        blank = blank_share(self.share_rows, own.size, own.mask_size, own.map_shape)
        self.share_bytes: int = pack_share(blank).nbytes
        self._tasks = [steps[at : at + task_steps] for at in range(0, len(steps), task_steps)]

    @property
    def tasks(self) -> int:
        """Number of read tasks."""
        return len(self._tasks)

    def get_name(self) -> str:
        return "Fetch"

    def estimate_inmemory_data_size(self) -> int:
        return sum(len(steps) for steps in self._tasks) * self.share_bytes

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        tasks = []
        for steps in self._tasks:
            read = partial(_fetch, self._request, self._rank, self._world, steps)
            meta = BlockMetadata(
                num_rows=len(steps) * self.share_rows,
                size_bytes=len(steps) * self.share_bytes,
                input_files=None,
                exec_stats=None,
            )
            tasks.append(ReadTask(read, meta, per_task_row_limit=per_task_row_limit))
        return tasks


def _fetch(request: RowsRequest, rank: int, world: int, steps: Sequence[int]) -> Iterator[pa.Table]:
    """Shares of some steps."""
    give_back_locks()  # an earlier task of this process may have been cancelled
    for group in groups(request, rank, world, steps):
        for share in fetch_shares(request, group, rank, world):
            yield pack_share(share)


def blank_share(
    rows: int,
    size: tuple[int, int],
    mask: tuple[int, int] | None = None,
    shape: tuple[int, ...] | None = None,
) -> Share:
    """A share of the right size with nothing in it. mask, shape: of a row's mask and map."""
    zeros = np.zeros(rows, np.int64)
    masks = None if mask is None else np.zeros((rows, *mask), np.uint8)
    ids = np.zeros((rows, *size), np.uint16)
    maps = None if shape is None else np.zeros((rows, *shape), np.int16)
    return Share(0, 0, zeros, zeros, ids, zeros, Account(), masks, maps)
