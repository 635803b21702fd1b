"""A rank's stream of batches, with a position that can be saved and taken up again.

The same batches come out with Ray (fetch tasks and actors on the cluster), without it (threads of
this process), and where the consumer augments on its own device: all fetch and augment each step
by the same functions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial

from services.errors import InvalidInputError
from services.plan import cursor
from services.stream.augmentation import (
    augment_batch,
    augment_share,
    augmenter_for,
)
from services.stream.batch import StreamBatch, unpack_batch
from services.stream.fetch import opened
from services.stream.meter import Meter
from services.stream.order import THREADS
from services.stream.pool import Pool, Sharing
from services.stream.request import RowsRequest, StreamRequest
from services.stream.sources import Sources
from services.stream.threads import in_threads
from services.wire.seit import v1 as wire

logger = logging.getLogger(__name__)


class Stream:
    """Steps [start, stop) of `rank` of `world`, in order, each exactly once.

    pool: augmentation actors on a Ray cluster; None for threads of this process.
    trainer_cpus: logical CPUs that all trainers of the cluster hold, which the pool must leave.
    prefetch: shares prepared ahead of the consumer.
    sharing: take part in one stream with other jobs of the cluster that ask for the same; where
        that cannot be, or ends, the stream goes on with its own pool. Needs a pool.
    augment_on: device on which the consumer's own process augments, and where inputs then stay;
        None for actors of the pool, or threads. The batches are the same.

    steps_per_epoch: of the whole splits, also where only a part of their rows is read.
    spec, classes: of the data; label i is `classes[i]`.

    Raises: InvalidInputError where recipe, data and TokenAdapt do not belong together, or the
    recipe mixes labels and rows have none: nothing has been fetched then.
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
        sharing: Sharing | None = None,
        augment_on: str | None = None,
    ) -> None:
        if sharing is not None and pool is None:
            raise InvalidInputError(
                "a stream in threads of its own process cannot be shared with other jobs: give it"
                " a pool on a cluster, or no sharing"
            )
        sources = opened(request.fetched)
        _check_recipe(request, sources)
        plan = sources.plan
        self.steps_per_epoch = sources.steps_per_epoch
        self.spec, self.classes = sources.spec, sources.classes
        stop = self.steps_per_epoch if stop is None else stop
        if not 0 <= start <= stop:
            raise InvalidInputError(
                f"a stream of {request.rows.name} cannot start at step {start}: valid are 0 to its"
                f" end at step {stop}, after which nothing is left to read; ask for more epochs or,"
                " where a new version of the data has fewer rows, for the version before"
            )
        plan.rank_slots(rank, world)  # refuses more workers than blocks
        if plan.blocks_per_step % world and rank == 0:
            largest = -(-plan.blocks_per_step // world)
            enough = -(-plan.blocks_per_step // largest)
            logger.warning(
                "stream %s: %d workers share the %d blocks of a step unequally; a step takes as"
                " long as the largest share of %d%s",
                *(request.rows.name, world, plan.blocks_per_step, largest),
                f", and {enough} workers would take no longer" * (enough < world),
            )
        self.request, self.rank, self.world = request, rank, world
        self._augment_on = None if request.only_cuts else augment_on
        self._made = request  # what pool or threads make
        if self._augment_on is not None:
            self._made = request.unaugmented((sources.spec.grid_height, sources.spec.grid_width))
        self.start, self.stop, self._prefetch = start, stop, max(1, prefetch)
        self._pool, self._trainer_cpus, self._sharing = pool, trainer_cpus, sharing
        self.meter = Meter(
            request.rows.name,
            rank,
            world,
            stop,
            step=start,
            fetchers=THREADS if pool is None else pool.fetchers,
            augmenters=_augmenters(pool, self._augment_on),
        )
        self.cursor(start)  # refuses more sources than a position can name
        self._begun = False

    def cursor(self, step: int) -> bytes:
        """Position after `step` consumed steps: at most 4 KB, valid for any number of workers."""
        rows = self.request.rows
        position = cursor.make_cursor(sources_of(rows), rows.order, step, weights=rows.weights)
        return cursor.dump(position)

    def flow(self) -> wire.Flow:
        """What flowed so far."""
        return self.meter.snapshot()

    def __iter__(self) -> Iterator[StreamBatch]:
        """Its batches, once. Raises: InvalidInputError the second time."""
        if self._begun:
            raise InvalidInputError(
                f"the stream of {self.request.rows.name} is read for the second time: it would give"
                f" steps {self.start} to {self.stop} again and count each row twice. It runs"
                " through all its epochs by itself: read it in one loop, or open another stream"
            )
        self._begun = True
        steps = range(self.start, self.stop)
        if self._pool is None:
            place, augment = (self._made, self.rank, self.world), partial(augment_share, self._made)
            made = in_threads(*place, steps, self._prefetch, augment)
        else:
            made = self._with_ray()
        if self._augment_on is not None:
            made = self._augmented(made, self._augment_on)
        if self._pool is None:
            return metered(made, self.meter)
        from services.stream.metrics import exported

        return exported(metered(made, self.meter), self.meter)

    def _augmented(
        self, made: Generator[StreamBatch, None, None], device: str
    ) -> Generator[StreamBatch, None, None]:
        with closing(made):
            for batch in made:
                began = time.perf_counter()
                done = augment_batch(self.request, batch, device)
                spent = time.perf_counter() - began  # of the host; a GPU goes on by itself
                yield replace(done, account=replace(batch.account, augment_seconds=spent))

    def _with_ray(self) -> Generator[StreamBatch, None, None]:
        pool, sharing = self._pool, self._sharing
        assert pool is not None
        step = self.start
        if sharing is not None and step < self.stop:
            from services.stream.member import ApartError, shared_batches

            left, cpus = range(step, self.stop), self._trainer_cpus
            shares = shared_batches(
                self._made, self.rank, self.world, left, pool, cpus, sharing, self.meter
            )
            try:
                with closing(shares):
                    for batch in shares:
                        step = batch.step + 1
                        yield batch
                return
            except ApartError as apart:
                self.meter.shared(f"alone from step {step}: {apart}")
                logger.warning(
                    "stream %s, rank %d, at step %d: %s. It goes on with a pipeline of its own"
                    " from this step: the same batches, but their cost is no longer shared",
                    *(self.request.rows.name, self.rank, step, apart),
                )
        yield from self._by_itself(step, pool)

    def _by_itself(self, step: int, pool: Pool) -> Generator[StreamBatch, None, None]:
        from services.stream.ending import Ending
        from services.stream.starting import head_steps, started_here

        self.meter.taken_over(step + head_steps(self._made, self.rank, self.world, pool))
        place, steps = (self._made, self.rank, self.world), range(step, self.stop)
        how = self._trainer_cpus, self._prefetch
        with closing(started_here(*place, steps, pool, *how, Ending())) as made:
            for table in made:
                yield unpack_batch(table)


def _augmenters(pool: Pool | None, augment_on: str | None) -> int:
    """How many work at a time beside the consumer; 0 where it augments itself."""
    if augment_on is not None:
        return 0
    return THREADS if pool is None else pool.all_actors


def _check_recipe(request: StreamRequest, sources: Sources) -> None:
    """Refuse, before anything is fetched, a recipe that cannot be applied to these rows."""
    if request.recipe.needs_labels and sources.unlabelled:
        raise InvalidInputError(
            f"recipe {request.recipe.name!r} mixes rows and their labels (Mixup, CutMix), but"
            f" {', '.join(sources.unlabelled)} has rows without a label: their soft targets would"
            " mean nothing; set plain_mix.probability and adapt.mix.probability to 0, or ingest the"
            " pictures with labels"
        )
    if not request.only_cuts:
        augmenter_for(request, "cpu")  # built here, once, not by all threads at the same time


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


def sources_of(request: RowsRequest) -> list[wire.Source]:
    """The request's data as a position names them."""
    return [
        wire.Source(
            root=source.root,
            dataset=source.dataset,
            version=source.version,
            split=source.split,
            manifest_digest=source.digest,
            subset_rows=source.subset.rows if source.subset else 0,
            subset_seed=source.subset.seed if source.subset else 0,
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
