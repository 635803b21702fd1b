"""A consumer of a shared stream: it finds the service, or starts it, and takes its steps from it.

Whatever goes wrong there, `ApartError` says why; the consumer then goes on with a pipeline of its
own from its own step. Batches depend on step and rank alone, so they stay the same to the bit.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from services.stream.batch import StreamBatch, unpack_batch
from services.stream.pool import Pool, Sharing
from services.stream.request import StreamRequest
from services.stream.shared import (
    NAMESPACE,
    Answer,
    Kept,
    StreamService,
    Welcome,
    first_line,
    service_name,
)

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 1.0  # for a step, after which the service is asked again
_FIND_SECONDS = 60.0  # for a service that ends to make room for a new one
_AGAIN_SECONDS = 0.2
_BEATS = 12  # signs of life in the idle time
_THREADS = 64  # of the service: wishes that wait at a time


class ApartError(Exception):
    """This consumer is no member of the shared stream, or no longer; the message says why."""


class Member:
    """A place among the consumers of a service; a context, which leaves it at the end.

    start: the first step that the service made.
    """

    def __init__(self, service: Any, name: str, sharing: Sharing, start: int) -> None:
        self._service, self._name, self.start = service, name, start
        self._interval = sharing.idle_seconds / _BEATS
        self._closed = threading.Event()

    def batch(self, step: int) -> StreamBatch:
        """The batch of a step; several threads may ask for different ones.

        Raises: ApartError where the service lets it go, failed or died.
        """
        while not self._closed.is_set():
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

    def end(self) -> None:
        """Want nothing more: who waits for a batch gives up within a second."""
        self._closed.set()

    def __enter__(self) -> Member:
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()
        if not ray.is_initialized():
            return
        try:
            ray.get(self._service.leave.remote(self._name), timeout=_WAIT_SECONDS)
        except RayError:
            return  # dead, or busy: it misses our signs of life soon

    def _beat(self) -> None:
        while not self._closed.wait(self._interval) and ray.is_initialized():
            self._service.hear.remote(self._name)


def join(
    request: StreamRequest,
    rank: int,
    world: int,
    steps: range,
    pool: Pool,
    trainer_cpus: float,
    sharing: Sharing,
) -> Member:
    """Join the service that makes this stream; the first one starts it, on its own node.

    steps: what is left to this consumer. Raises: ApartError if the service stands elsewhere.
    """
    service_class: Any = ray.remote(StreamService)
    options = service_class.options(
        name=service_name(request, rank, world, steps.stop, pool),
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
    me, began = uuid.uuid4().hex, time.monotonic()
    while True:
        try:
            service = options.remote(request, rank, world, steps, pool, trainer_cpus, sharing)
            welcome: Welcome = ray.get(service.join.remote(me, steps.start))
        except RayError as error:
            if time.monotonic() - began > _FIND_SECONDS:
                raise ApartError(
                    f"no shared stream could be started ({first_line(error)})"
                ) from error
        else:
            if welcome.state == "outside":
                raise ApartError(
                    f"the shared stream keeps {_said(welcome.kept)}; a trainer may join at those,"
                    f" or at most {welcome.kept.lag} later"
                )
            if welcome.state == "inside":
                return _member(service, me, request, rank, sharing, welcome.kept)
            ray.kill(service)
        time.sleep(_AGAIN_SECONDS)  # until its name is free


def _member(
    service: Any, me: str, request: StreamRequest, rank: int, sharing: Sharing, kept: Kept
) -> Member:
    if kept.lag != sharing.lag:
        logger.warning(
            "stream %s, rank %d: --cluster.share-lag is %d here, but the one who started the"
            " shared stream chose %d, which holds",
            *(request.rows.name, rank, sharing.lag, kept.lag),
        )
    return Member(service, me, sharing, kept.start)


def _said(kept: Kept) -> str:
    return f"steps {kept.oldest} to {kept.newest} (lag {kept.lag})"
