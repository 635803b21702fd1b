"""A rank's stream of batches, with a position that can be saved and taken up again.

The same batches come out with Ray (fetch tasks and actors on the cluster) and without it (threads
of this process): both call `fetch_share` and `augment_share` for each step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from services.errors import InvalidInputError
from services.plan import cursor
from services.stream.augmentation import augment_share, augmenter_for
from services.stream.batch import StreamBatch, unpack
from services.stream.fetch import fetch_share, opened
from services.stream.meter import Meter
from services.stream.request import RowsRequest, StreamRequest
from services.wire.seit import v1 as wire

if TYPE_CHECKING:
    from services.stream.pipeline import Pool


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
        _, plan = opened(request.rows)
        self.steps_per_epoch = plan.steps_per_epoch
        stop = self.steps_per_epoch if stop is None else stop
        if not 0 <= start <= stop:
            raise InvalidInputError(
                f"a stream starts at a step between 0 and its last step {stop}, got {start};"
                " a finished run has nothing left to read"
            )
        plan.rank_slots(rank, world)  # refuses a world that does not divide the blocks
        self.request, self.rank, self.world = request, rank, world
        self.start, self.stop, self._prefetch = start, stop, max(1, prefetch)
        self._pool, self._trainer_cpus = pool, trainer_cpus
        self.meter = Meter(f"{request.rows.dataset}/{request.rows.split}", rank, world, stop)

    def source(self) -> wire.Source:
        """Identity of the data, as it stands in a cursor."""
        return source_of(self.request.rows)

    def cursor(self, step: int) -> bytes:
        """Position after `step` consumed steps: at most 4 KB, valid for any number of workers."""
        return cursor.dump(cursor.make_cursor(self.source(), self.request.rows.order, step))

    def __iter__(self) -> Iterator[StreamBatch]:
        shares = self._with_ray() if self._pool is not None else self._in_threads()
        state = "failed"
        try:
            while True:
                asked = time.monotonic()
                batch = next(shares, None)
                if batch is None:
                    state = "finished"
                    return
                self.meter.delivered(int((batch.rows >= 0).sum()), time.monotonic() - asked)
                yield batch
        except GeneratorExit:
            state = "finished"
            raise
        finally:
            shares.close()
            self.meter.ended(state)

    def _with_ray(self) -> Generator[StreamBatch, None, None]:
        from services.stream.pipeline import build, reserve

        assert self._pool is not None
        dataset, share_rows = build(
            self.request, self.rank, self.world, self.start, self.stop, self._pool
        )
        reserve(dataset, self._pool, self.world, self._trainer_cpus)
        tables = dataset.iter_batches(
            batch_size=share_rows, batch_format="pyarrow", prefetch_batches=self._prefetch
        )
        for table in tables:
            yield unpack(table)

    def _in_threads(self) -> Generator[StreamBatch, None, None]:
        augmenter_for(self.request)  # built here, once, not by all threads at the same time

        def prepare(step: int) -> StreamBatch:
            table = fetch_share(self.request.rows, step, self.rank, self.world)
            return unpack(augment_share(self.request, table))

        yield from in_order(prepare, self.start, self.stop, self._prefetch)


def in_order(
    prepare: Callable[[int], StreamBatch], start: int, stop: int, ahead: int
) -> Generator[StreamBatch, None, None]:
    """`prepare(step)` for each step, up to `ahead` of them at work, given out in order."""
    waiting: deque[Future[StreamBatch]] = deque()
    pool = ThreadPoolExecutor(max_workers=min(ahead, 4), thread_name_prefix="seit-stream")
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


def source_of(request: RowsRequest) -> wire.Source:
    """The request's data as a position names it."""
    return wire.Source(
        root=request.root,
        dataset=request.dataset,
        version=request.version,
        split=request.split,
        manifest_digest=request.digest,
    )


def resume_step(request: RowsRequest, saved: bytes) -> int:
    """The step at which a saved position stands.

    Raises: CursorMismatchError if it belongs to other data or to another order; FormatError.
    """
    position = cursor.load(saved)
    cursor.check(position, source_of(request), request.order)
    return position.step
