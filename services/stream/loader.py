"""A rank's stream of batches, with a position that can be saved and taken up again.

The same batches come out with Ray (fetch tasks and actors on the cluster) and without it (threads
of this process): both call `fetch_share` and `augment_share` for each step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from services.errors import InvalidInputError
from services.plan import cursor
from services.stream.augmentation import augment_share, augmenter_for
from services.stream.batch import StreamBatch, unpack_batch
from services.stream.fetch import fetch_share, opened, share_rows
from services.stream.meter import Meter
from services.stream.pool import Pool
from services.stream.request import RowsRequest, StreamRequest
from services.wire.seit import v1 as wire

THREADS = 4
"""Threads that prepare shares without a cluster; more than cores, as some wait for disks."""


class Stream:
    """Steps [start, stop) of `rank` of `world`, in order, each exactly once.

    pool: augmentation actors on a Ray cluster; None for threads of this process.
    trainer_cpus: logical CPUs that all trainers of the cluster hold, which the pool must leave.
    prefetch: shares prepared ahead of the consumer.
    """

    def __init__(
        self,
        request: StreamRequest,
        *,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        stop: int | None = None,
        pool: Pool | None = None,
        trainer_cpus: float = 0.0,
        prefetch: int = 4,
    ) -> None:
        plan = opened(request.fetched).plan
        self.steps_per_epoch = plan.steps_per_epoch
        stop = self.steps_per_epoch if stop is None else stop
        if not 0 <= start <= stop:
            raise InvalidInputError(
                f"a stream of {request.rows.name} cannot start at step {start}: valid are 0 to its"
                f" end at step {stop}, after which nothing is left to read; ask for more epochs or,"
                " where a new version of the data has fewer rows, for the version before"
            )
        plan.rank_slots(rank, world)  # refuses a world that does not divide the blocks
        self.request, self.rank, self.world = request, rank, world
        self.start, self.stop, self._prefetch = start, stop, max(1, prefetch)
        self._pool, self._trainer_cpus = pool, trainer_cpus
        self.meter = Meter(
            request.rows.name,
            rank,
            world,
            stop,
            step=start,
            fetchers=THREADS if pool is None else pool.fetchers,
            augmenters=THREADS if pool is None else pool.actors,
        )
        self.cursor(start)  # refuses more sources than a position can name

    def cursor(self, step: int) -> bytes:
        """Position after `step` consumed steps: at most 4 KB, valid for any number of workers."""
        rows = self.request.rows
        position = cursor.make_cursor(sources_of(rows), rows.order, step, weights=rows.weights)
        return cursor.dump(position)

    def flow(self) -> wire.Flow:
        """What flowed so far."""
        return self.meter.snapshot()

    def __iter__(self) -> Iterator[StreamBatch]:
        if self._pool is None:
            return metered(self._in_threads(), self.meter)
        from services.stream.metrics import exported

        return exported(metered(self._with_ray(), self.meter), self.meter)

    def _with_ray(self) -> Generator[StreamBatch, None, None]:
        from services.stream.pipeline import build, executions, reserve

        pool = self._pool
        assert pool is not None
        rows = share_rows(self.request.fetched, self.world)
        for steps, task_steps in executions(rows, self.start, self.stop):
            dataset = build(self.request, self.rank, self.world, steps, task_steps, pool)
            augments = not self.request.only_cuts
            reserve(dataset, pool, self.world, self._trainer_cpus, augments=augments)
            for table in dataset.iter_batches(
                batch_size=rows, batch_format="pyarrow", prefetch_batches=self._prefetch
            ):
                yield unpack_batch(table)

    def _in_threads(self) -> Generator[StreamBatch, None, None]:
        request = self.request
        if not request.only_cuts:
            augmenter_for(request)  # built here, once, not by all threads at the same time

        def prepare(step: int) -> StreamBatch:
            return augment_share(request, fetch_share(request.fetched, step, self.rank, self.world))

        yield from in_order(prepare, self.start, self.stop, self._prefetch)


def metered(shares: Generator[StreamBatch, None, None], meter: Meter) -> Iterator[StreamBatch]:
    """The same batches, each noted by the meter; `shares` ends with the iterator."""
    state = "failed"
    try:
        while True:
            asked = time.monotonic()
            batch = next(shares, None)
            if batch is None:
                state = "finished"
                return
            waited = time.monotonic() - asked
            meter.delivered(batch.step, int((batch.rows >= 0).sum()), waited, batch.account)
            yield batch
    except GeneratorExit:
        flow = meter.snapshot()
        state = "finished" if flow.step == flow.step_target else "stopped"
        raise
    finally:
        shares.close()
        meter.ended(state)


def in_order(
    prepare: Callable[[int], StreamBatch], start: int, stop: int, ahead: int
) -> Generator[StreamBatch, None, None]:
    """`prepare(step)` for each step, up to `ahead` of them at work, given out in order."""
    waiting: deque[Future[StreamBatch]] = deque()
    pool = ThreadPoolExecutor(max_workers=min(ahead, THREADS), thread_name_prefix="seit-stream")
    try:
        upcoming = iter(range(start, stop))
        for step in upcoming:
            waiting.append(pool.submit(prepare, step))
            if len(waiting) >= ahead:
                break
        while waiting:
            batch = waiting.popleft().result()
            following = next(upcoming, None)
            if following is not None:
                waiting.append(pool.submit(prepare, following))
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def sources_of(request: RowsRequest) -> list[wire.Source]:
    """The request's data as a position names them."""
    return [
        wire.Source(
            root=source.root,
            dataset=source.dataset,
            version=source.version,
            split=source.split,
            manifest_digest=source.digest,
        )
        for source in request.sources
    ]


def resume_step(
    request: RowsRequest, saved: bytes, allow: Collection[str] = ()
) -> tuple[int, list[str]]:
    """(the step at which a saved position stands, what was allowed to differ, in words).

    allow: see `services.plan.cursor.check`.
    Raises: CursorMismatchError if it belongs to other data or to another order; FormatError.
    """
    position = cursor.load(saved)
    allowed = cursor.check(
        position, sources_of(request), request.order, weights=request.weights, allow=allow
    )
    return position.step, allowed
