"""A consumer of a shared stream: it finds the service, or starts it, and takes its steps from it.

A service is a process that has to start, and so are its actors: a consumer makes the first steps
itself meanwhile, as it does before a pipeline of its own.

Whatever goes wrong there, `ApartError` says why; the consumer then goes on with a pipeline of its
own from its own step. Batches depend on step and rank alone, so they stay the same to the bit.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from services.stream.batch import StreamBatch, unpack_batch
from services.stream.meter import Meter
from services.stream.order import in_order
from services.stream.pipeline import free_cpus
from services.stream.pool import Pool, Sharing
from services.stream.request import StreamRequest
from services.stream.shared import (
    AHEAD,
    NAMESPACE,
    Answer,
    Kept,
    StreamService,
    Welcome,
    first_line,
    service_name,
)
from services.stream.starting import head_start, head_steps

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 1.0  # for a step, after which the service is asked again
_FIND_SECONDS = 60.0  # for a service that ends to make room for a new one
_AGAIN_SECONDS = 0.2
_AT_ONCE_SECONDS = 0.25  # in which a service that runs already answers
_BEATS = 12  # signs of life in the idle time
_THREADS = 64  # of the service: wishes that wait at a time


class ApartError(Exception):
    """This consumer is no member of the shared stream, or no longer; the message says why."""


class Member:
    """A place among the consumers of a service, with signs of life until it is left.

    start: the first step that the service makes; those before it are each consumer's own.
    ended: set where nothing more is wanted: who waits for a batch gives up within a second.
    """

    def __init__(
        self, service: Any, name: str, sharing: Sharing, start: int, ended: threading.Event
    ) -> None:
        self._service, self._name, self.start, self._ended = service, name, start, ended
        self._interval = sharing.idle_seconds / _BEATS
        threading.Thread(target=self._beat, daemon=True).start()

    def batch(self, step: int) -> StreamBatch:
        """The batch of a step; several threads may ask for different ones.

        Raises: ApartError where the service lets it go, failed or died.
        """
        while not self._ended.is_set():
            try:
                wish = self._service.ask.remote(self._name, step, _WAIT_SECONDS)
                answer: Answer = ray.get(wish)
                if answer.state == "given":
                    return unpack_batch(ray.get(answer.share[0]))
            except RayError as error:
                raise ApartError(f"the shared stream is gone ({first_line(error)})") from error
            if answer.state == "behind":
                raise ApartError(
                    f"this trainer fell off: the shared stream keeps {_said(answer.kept)}, and does"
                    " not wait for slower ones (a larger --cluster.share-lag keeps more)"
                )
            if answer.state == "failed":
                raise ApartError(f"the shared stream is gone ({answer.why})")
        raise ApartError("this trainer has left the shared stream")

    def leave(self) -> None:
        """Want nothing more."""
        self._ended.set()
        if not ray.is_initialized():
            return
        try:
            ray.get(self._service.leave.remote(self._name), timeout=_WAIT_SECONDS)
        except RayError:
            return  # dead, or busy: it misses our signs of life soon

    def _beat(self) -> None:
        while not self._ended.wait(self._interval) and ray.is_initialized():
            self._service.hear.remote(self._name)


def shared_batches(
    request: StreamRequest,
    rank: int,
    world: int,
    steps: range,
    pool: Pool,
    trainer_cpus: float,
    sharing: Sharing,
    meter: Meter,
) -> Generator[StreamBatch, None, None]:
    """The batch of each of `steps`, in order, from the service that makes this stream.

    Raises: ApartError once the next one has to be made by this consumer's own pipeline;
    CapacityError where the cluster has no room for the actors: no service is started then.
    """
    free_cpus(pool, world, trainer_cpus, augments=not request.only_cuts)
    ended = threading.Event()
    made = request, rank, world, steps, pool, trainer_cpus, sharing
    find = partial(_service(service_name(request, rank, world, steps.stop, pool)).remote, *made)

    def join() -> Member:
        member = _join(find, f"{request.rows.name}, rank {rank}", steps.start, sharing, ended)
        meter.shared("shared")
        meter.taken_over(member.start)
        return member

    def goes_on(step: int) -> bool:
        """Whether it is settled that the service makes `step`, or will make none for us."""
        return joining.done() and (bool(joining.exception()) or joining.result().start <= step)

    with ThreadPoolExecutor(1, "seit-join") as joiner:
        joining: Future[Member] = joiner.submit(join)
        try:
            step = steps.start
            own = steps[: head_steps(request, rank, world, pool)]
            wait([joining], _AT_ONCE_SECONDS)
            if own and not goes_on(step):
                with closing(head_start(request, rank, world, own, pool, AHEAD)) as here:
                    for table in here:
                        yield unpack_batch(table)
                        step += 1
                        if goes_on(step):
                            break
            if step == steps.stop:
                return
            member = joining.result()
            left = range(step, steps.stop)
            with closing(in_order(member.batch, left, AHEAD, ended.set)) as asked:
                yield from asked
        finally:
            ended.set()
            if not joining.exception():
                joining.result().leave()


def _service(name: str) -> Any:
    """The service of that name, as `remote` finds it, or starts it on this node."""
    service_class: Any = ray.remote(StreamService)
    return service_class.options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_concurrency=_THREADS,
        # Ray ignores a soft wish of actors that take no resources, and picks any node.
        scheduling_strategy=NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        ),
    )


def _join(
    find: Callable[[], Any], stream: str, step: int, sharing: Sharing, ended: threading.Event
) -> Member:
    """Join the service that makes a stream; the first one starts it.

    find: gives the service. stream: in words. step: the next one of this consumer.
    Raises: ApartError if the service stands elsewhere.
    """
    me, began = uuid.uuid4().hex, time.monotonic()
    while not ended.is_set():
        try:
            service = find()
            welcome = _welcome(service, me, step, ended)
        except RayError as error:
            if time.monotonic() - began > _FIND_SECONDS:
                raise ApartError(
                    f"no shared stream could be started ({first_line(error)})"
                ) from error
        else:
            if welcome is None:
                break
            if welcome.state == "outside":
                raise ApartError(
                    f"the shared stream keeps {_said(welcome.kept)}; a trainer may join at those,"
                    f" or at most {welcome.kept.lag} later"
                )
            if welcome.state == "inside":
                _warn_of_lag(stream, sharing, welcome.kept)
                return Member(service, me, sharing, welcome.kept.start, ended)
            ray.kill(service)
        ended.wait(_AGAIN_SECONDS)  # until its name is free
    raise ApartError("this trainer has left the shared stream")


def _welcome(service: Any, me: str, step: int, ended: threading.Event) -> Welcome | None:
    """What a service says to who wants `step` next, once it has started; None if none is wanted."""
    asked = service.join.remote(me, step)
    while not ended.is_set():
        if ray.wait([asked], timeout=_AGAIN_SECONDS)[0]:
            welcome: Welcome = ray.get(asked)
            return welcome
    service.leave.remote(me)
    return None


def _warn_of_lag(stream: str, sharing: Sharing, kept: Kept) -> None:
    if kept.lag != sharing.lag:
        logger.warning(
            "stream %s: --cluster.share-lag is %d here, but the one who started the shared stream"
            " chose %d, which holds",
            *(stream, sharing.lag, kept.lag),
        )


def _said(kept: Kept) -> str:
    return f"steps {kept.oldest} to {kept.newest} (lag {kept.lag})"
