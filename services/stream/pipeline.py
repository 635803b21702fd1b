"""The plan as a Ray Dataset: fetch tasks, an augmentation actor pool, order kept.

A read task stands for a few consecutive steps of one rank; it fetches their shares through the
node's cache and yields one block. Blocks are whole multiples of a share, so cutting a batch from
them is a slice without a copy. One execution covers the whole run: actors start once, and the end
of an epoch costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Datasource, ExecutionResources, ReadTask
from ray.data.block import BlockMetadata
from ray.data.context import DataContext

from services.errors import CapacityError, InvalidInputError
from services.stream.actors import AugmentActor
from services.stream.cluster import capacity
from services.stream.fetch import fetch_share, opened
from services.stream.request import RowsRequest, StreamRequest

FETCH_CPUS = 0.25
"""Logical CPUs of a fetch task: it mostly waits for storage, and one must always find room."""

FETCH_TASKS = 2
"""Fetch tasks of one stream at a time. Each is a process; more of them than cores only compete."""

TASK_ROWS = 2048
"""Rows that a fetch task aims at: a task costs a few milliseconds whatever it carries."""


@dataclass(frozen=True)
class Pool:
    """Size of a stream's augmentation pool.

    actors: how many at least; max_actors: how many at most, 0 for no more than `actors`.
    cpus, gpus: what each takes, fractions allowed.
    """

    actors: int = 1
    max_actors: int = 0
    cpus: float = 0.5
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.actors < 1 or self.cpus < 0 or self.gpus < 0 or self.cpus + self.gpus == 0:
            raise InvalidInputError(
                f"an augmentation pool needs at least 1 actor and a share of a CPU or GPU > 0, got"
                f" {self.actors} actors with {self.cpus} CPUs and {self.gpus} GPUs each"
            )
        if self.max_actors and self.max_actors < self.actors:
            raise InvalidInputError(
                f"max_actors is {self.max_actors}, less than actors {self.actors}; use 0 or more"
            )


class StepsDatasource(Datasource):
    """Steps [start, stop) of one rank's share, a few consecutive ones a read task."""

    def __init__(self, request: RowsRequest, rank: int, world: int, start: int, stop: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        reader, plan = opened(request)
        spec = reader.spec
        self._request, self._rank, self._world = request, rank, world
        self._share_rows = len(plan.rank_slots(rank, world)) * request.order.block_rows
        self._row_bytes = 2 * spec.grid_height * spec.grid_width + 16
        steps = max(1, TASK_ROWS // self._share_rows)
        self._tasks = [(at, min(at + steps, stop)) for at in range(start, stop, steps)]

    @property
    def share_rows(self) -> int:
        """Rows of one share: what one batch of this rank holds."""
        return self._share_rows

    @property
    def tasks(self) -> int:
        """Number of read tasks."""
        return len(self._tasks)

    def get_name(self) -> str:
        return "Fetch"

    def estimate_inmemory_data_size(self) -> int:
        return sum(stop - start for start, stop in self._tasks) * self._share_rows * self._row_bytes

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        tasks = []
        for start, stop in self._tasks:
            rows = (stop - start) * self._share_rows
            read = partial(_fetch, self._request, self._rank, self._world, start, stop)
            meta = BlockMetadata(
                num_rows=rows,
                size_bytes=rows * self._row_bytes,
                input_files=None,
                exec_stats=None,
            )
            tasks.append(ReadTask(read, meta, per_task_row_limit=per_task_row_limit))
        return tasks


def _fetch(
    request: RowsRequest, rank: int, world: int, start: int, stop: int
) -> Iterator[pa.Table]:
    """Shares of consecutive steps."""
    for step in range(start, stop):
        yield fetch_share(request, step, rank, world)


def build(
    request: StreamRequest, rank: int, world: int, start: int, stop: int, pool: Pool
) -> tuple[ray.data.Dataset, int]:
    """(dataset of augmented shares in step order, rows of one share)."""
    source = StepsDatasource(request.rows, rank, world, start, stop)
    fetched = ray.data.read_datasource(
        source,
        override_num_blocks=max(1, source.tasks),
        concurrency=FETCH_TASKS,
        num_cpus=FETCH_CPUS,
    )
    dataset = fetched.map_batches(
        AugmentActor,
        batch_size=source.share_rows,
        batch_format="pyarrow",
        fn_constructor_args=(
            request,
            max(1, math.floor(pool.cpus)),
            "cuda" if pool.gpus else "cpu",
        ),
        compute=ActorPoolStrategy(min_size=pool.actors, max_size=max(pool.actors, pool.max_actors)),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
        udf_modifying_row_count=False,
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    return dataset, source.share_rows


def reserve(dataset: ray.data.Dataset, pool: Pool, world: int, trainer_cpus: float) -> None:
    """Keep the dataset's executor off the trainers' CPUs, and refuse what cannot be placed.

    trainer_cpus: logical CPUs that all trainer workers together hold. A pool that takes the last
    CPU would leave none for a fetch task, and the run would wait for ever: that is said here.

    Raises: CapacityError.
    """
    total = capacity("CPU")
    free = total - trainer_cpus
    need = world * (pool.actors * pool.cpus + FETCH_CPUS)
    if need > free:
        raise CapacityError(
            f"{world} streams with {pool.actors} augmentation actors of {pool.cpus} CPUs each, and"
            f" {FETCH_CPUS} CPUs for fetching, need {need:g} CPUs; the cluster has {total:g}, of"
            f" which the trainers hold {trainer_cpus:g}. The run would never start: use fewer or"
            " smaller actors (--cluster.augment-actors, --cluster.augment-cpus-per-actor), fewer"
            " workers, or a larger cluster"
        )
    dataset.context.execution_options.resource_limits = ExecutionResources.for_limits(
        cpu=free / world
    )
