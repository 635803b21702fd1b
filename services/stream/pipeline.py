"""The plan as a Ray Dataset: fetch tasks, an augmentation actor pool, order kept.

A read task stands for consecutive steps of one rank; it fetches their shares through the node's
cache and yields each as a block of its own, so that a batch is a block, never cut nor joined.
One execution covers the whole run (the longest ones apart): actors start once, and the end of an
epoch costs nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, ExecutionResources

from services.errors import CapacityError
from services.stream.actors import AugmentActor
from services.stream.cluster import reach
from services.stream.ending import Ending, outliving_ray
from services.stream.fetch import opened, share_rows
from services.stream.forget import Forget
from services.stream.order import merged
from services.stream.pool import Pool
from services.stream.request import StreamRequest
from services.stream.steps import StepsDatasource, blank_share
from services.stream.table import pack_share

TASK_ROWS = 2048, 65_536
"""Rows that a fetch task aims at, least and most. A task costs a few milliseconds whatever it
carries; one that is lost is done again from its start."""

EXECUTION_TASKS = 256, 1024
"""Fetch tasks that an execution aims at, and has at most. Ray lays all of them down before the
first one starts, at more than a millisecond each, in which the first batch is waited for. A run of
more than so many of the largest tasks (67 million rows) goes on with a new execution."""

AHEAD_BLOCKS = 4096
"""Shares that stand in the cluster's memory at most, as fetched and as augmented together. Ray's
own limit is in bytes alone; of very small shares hundreds of thousands would fit in it, and each
costs the trainer's process some 10 KB to know of."""


def block_bytes(fetched: int, augmented: int) -> int:
    """Ray's target for the size of blocks with which none is ever cut inside a share.

    Ray collects what a task yields until it passes the target, and cuts what is half as large
    again. At four fifths of a share, each share is a block of its own, with room for the few bytes
    by which shares differ. Where augmented shares are far larger, the target follows them, and
    blocks of fetched ones hold several. Between the two an augmented share may be cut; the
    consumer joins it again.

    fetched, augmented: bytes of one share. An augmenting task always makes one share at a time.
    """
    share = augmented if augmented >= 2 * fetched else fetched
    return -(-4 * share // 5)


def _augmented_bytes(request: StreamRequest, rows: int) -> int:
    """Bytes of a share behind the recipe; of a recipe that fetching applies, those of the fetch."""
    spec, recipe = opened(request.fetched).spec, request.recipe
    values = spec.channels if recipe.output == "embeddings" else 1
    inputs = 2 * rows * recipe.crop[0] * recipe.crop[1] * values
    blank: int = pack_share(blank_share(rows, (1, 1))).nbytes - 2 * rows
    masks = 0
    if request.rows.masks:
        pixels = spec.image_height * spec.image_width // (spec.grid_height * spec.grid_width)
        masks = rows * recipe.crop[0] * recipe.crop[1] * pixels
    return inputs + blank + masks + rows * (8 + 4)  # label_b and mix


def executions(share_rows: int, start: int, stop: int) -> Iterator[tuple[range, int]]:
    """(steps of each execution, steps of each of its fetch tasks) for a run of [start, stop)."""
    least, most = (max(1, rows // share_rows) for rows in TASK_ROWS)
    aim, limit = EXECUTION_TASKS
    while start < stop:
        task_steps = min(most, max(least, -(-(stop - start) // aim)))
        end = min(stop, start + task_steps * limit)
        yield range(start, end), task_steps
        start = end


def tables(
    request: StreamRequest,
    rank: int,
    world: int,
    steps: range,
    pool: Pool,
    trainer_cpus: float,
    prefetch: int,
    ending: Ending,
) -> Generator[pa.Table, None, None]:
    """One table for each of `steps`, in their order, for `unpack_batch`.

    trainer_cpus: see `reserve`. prefetch: tables prepared ahead of their consumer.
    ending: by which another thread than the consumer's ends them all.
    Raises: CapacityError; what fetching and augmenting raise.
    """
    rows = share_rows(request.fetched, rank, world)
    for part, task_steps in executions(rows, steps.start, steps.stop):
        if ending.ended:
            return
        sides = [(pool, part)] if request.only_cuts else pool.sides(part)
        datasets = [build(request, rank, world, own, task_steps, side) for side, own in sides]
        for dataset in datasets:
            ending.covers(dataset.context)
        reserve(datasets, pool, world, trainer_cpus, augments=not request.only_cuts)
        made = [_batches(dataset, rows, prefetch) for dataset in datasets]
        if len(made) == 1:
            yield from made[0]
        else:
            one, beside = made
            yield from merged(part, sides[1][1], one, beside, ending.end)


def _batches(
    dataset: ray.data.Dataset, rows: int, prefetch: int
) -> Generator[pa.Table, None, None]:
    with outliving_ray():
        made: Any = iter(
            dataset.iter_batches(batch_size=rows, batch_format="pyarrow", prefetch_batches=prefetch)
        )
        try:
            for table in made:  # noqa: UP028 - which would close it by itself, and raise
                yield table
        finally:
            # Whatever Ray says of a cluster that is gone.
            with nullcontext() if ray.is_initialized() else suppress(Exception):
                made.close()


def build(
    request: StreamRequest,
    rank: int,
    world: int,
    steps: Sequence[int],
    task_steps: int,
    pool: Pool,
) -> Any:
    """The `ray.data.Dataset` of augmented shares of `steps` in their order, each a whole batch."""
    source = StepsDatasource(request.fetched, rank, world, steps, task_steps)
    fetched: ray.data.Dataset = ray.data.read_datasource(
        source,
        override_num_blocks=source.tasks,
        concurrency=min(pool.fetchers, source.tasks),  # Ray warns of more than there are
        num_cpus=0,  # see Pool.fetchers
        **_near_here(),
    )
    augmented_bytes = _augmented_bytes(request, source.share_rows)
    fetched.context.target_max_block_size = block_bytes(source.share_bytes, augmented_bytes)
    fetched.context.execution_options.preserve_order = True
    fetched.context.enable_progress_bars = False
    fetched.context.custom_execution_callback_classes = [Forget]
    fetched.context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=AHEAD_BLOCKS * max(source.share_bytes, augmented_bytes)
    )
    if request.only_cuts:
        return fetched
    return fetched.map_batches(
        AugmentActor,
        batch_size=source.share_rows,
        batch_format="pyarrow",
        fn_constructor_args=(
            request,
            pool.threads,
            "cuda" if pool.gpus else "cpu",
        ),
        compute=ActorPoolStrategy(min_size=pool.actors, max_size=max(pool.actors, pool.max_actors)),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
        udf_modifying_row_count=False,
    )


def _near_here() -> dict[str, Any]:
    """Ray's options for tasks beside their consumer as long as there is room: nodes that all read
    the same shards would each keep them in a cache of their own, and fetch them from storage once
    each."""
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    return {"label_selector": here, "fallback_strategy": [{"label_selector": {}}]}


def reserve(
    datasets: Sequence[ray.data.Dataset],
    pool: Pool,
    world: int,
    trainer_cpus: float,
    *,
    augments: bool,
) -> None:
    """Keep the datasets' executors off the trainers' CPUs, and refuse what cannot be placed.

    datasets: one for each kind of the pool's actors, those beside last. Otherwise as `free_cpus`.
    Raises: CapacityError.
    """
    free = free_cpus(pool, world, trainer_cpus, augments=augments)
    beside = pool.beside.actors * pool.beside.cpus if pool.beside and len(datasets) > 1 else 0.0
    for dataset, limit in zip(datasets, (free / world - beside, beside), strict=False):
        options = dataset.context.execution_options
        options.resource_limits = options.resource_limits.copy(cpu=limit)


def free_cpus(pool: Pool, world: int, trainer_cpus: float, *, augments: bool) -> float:
    """Logical CPUs that are left to `world` streams, beside the trainers.

    What a cluster may come to have counts: actors that it cannot place yet wait, and an autoscaler
    starts nodes for what waits.

    trainer_cpus: logical CPUs that all trainer workers together hold.
    augments: whether there are actors at all; a recipe that fetching applies needs none.

    Raises: CapacityError where the actors cannot be placed on them.
    """
    total, total_gpus = reach("CPU", pool.grows_to_cpus), reach("GPU", pool.grows_to_gpus)
    free = total - trainer_cpus
    actors, cpus = (pool.all_actors, pool.all_cpus) if augments else (0, 0.0)
    need, need_gpus = world * cpus, world * (pool.actors * pool.gpus if augments else 0)
    if need > free or need_gpus > total_gpus:
        raise CapacityError(
            f"{world} streams with {actors} augmentation actors that take {cpus:g} CPUs and"
            f" {pool.actors * pool.gpus:g} GPUs each need {need:g} CPUs and {need_gpus:g} GPUs; the"
            f" cluster has at most {total:g} and {total_gpus:g}, and the trainers hold"
            f" {trainer_cpus:g} CPUs. The run would never start: use fewer or smaller actors"
            " (--cluster.augment-actors, --cluster.augment-cpus-per-actor), fewer workers, or a"
            " larger cluster; where an autoscaler makes it larger, say to how much"
            " (--cluster.grows-to-cpus, --cluster.grows-to-gpus)"
        )
    return free
