"""One augmented stream for several trainers: a named Ray actor that runs the pipeline once.

It keeps references to the augmented shares of the last steps. Who asks for a step that it keeps,
or makes next, gets the reference; the bytes travel through Ray's object store, also between nodes.
The fastest consumer sets the pace: a slow one is never waited for, its steps only go.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import ray
import xxhash

from services.stream.ending import Ending
from services.stream.pipeline import tables
from services.stream.pool import Pool, Sharing
from services.stream.request import StreamRequest
from services.stream.starting import head_steps

logger = logging.getLogger(__name__)

NAMESPACE = "seit"
"""Of the services: drivers have namespaces of their own, which others cannot see."""

AHEAD = 4
"""Steps that a consumer asks for at a time, and that are made before anyone asks."""

_FORMAT = 3  # of the questions and answers: programs that differ in it do not meet
_DEAD_AFTER = 1 / 4  # of the idle time, unheard: a consumer that died, not one that is slow
_LOOKS = 12  # at the clock, while the idle time goes by
_STOP_SECONDS = 10.0  # for the pipeline to end by itself


@dataclass(frozen=True)
class Kept:
    """The steps that a service gives out: oldest <= step <= newest; newest was asked for.

    start: the first that it makes. Those before it, while it starts, each consumer makes itself.
    """

    oldest: int
    newest: int
    lag: int
    start: int


@dataclass(frozen=True)
class Welcome:
    """inside: a member now. outside: the step is not kept. over: this service ends, ask anew."""

    state: Literal["inside", "outside", "over"]
    kept: Kept


@dataclass(frozen=True)
class Answer:
    """To a wish for a step.

    given: `share` holds its table, as a reference. wait: not made yet, ask again. behind: it was
    let go. failed: the pipeline ended, `why` in words.
    """

    state: Literal["given", "wait", "behind", "failed"]
    kept: Kept
    share: tuple[ray.ObjectRef[Any], ...] = ()
    why: str = ""


def service_name(request: StreamRequest, rank: int, world: int, stop: int, pool: Pool) -> str:
    """The same for jobs that would make the same batches the same way; caches are a node's own."""
    rows = replace(request.rows, cache_dir="any", cache_bytes=1)
    told = [_FORMAT, asdict(replace(request, rows=rows)), rank, world, stop, asdict(pool)]
    return f"stream-{xxhash.xxh3_128_hexdigest(json.dumps(told, sort_keys=True).encode())}"


class StreamService:
    """The actor: steps of one rank's stream, each made once, for all who ask.

    Methods run in threads of Ray's. A member that is not heard of for a while counts as dead; when
    none was heard of for `sharing.idle_seconds`, the actor ends itself.
    """

    def __init__(
        self,
        request: StreamRequest,
        rank: int,
        world: int,
        steps: range,
        pool: Pool,
        trainer_cpus: float,
        sharing: Sharing,
    ) -> None:
        self._sharing, self._first = sharing, steps.start
        steps = steps[head_steps(request, rank, world, pool) :]
        self._start = steps.start
        self._changed = threading.Condition()
        self._shares: dict[int, ray.ObjectRef[Any]] = {}
        self._newest = self._first
        self._heard: dict[str, float] = {}
        self._left: set[str] = set()
        self._last_heard = time.monotonic()
        self._failed = ""
        self._over = False
        self._ending = Ending()
        how = pool, trainer_cpus, AHEAD, self._ending
        make = partial(tables, request, rank, world, steps, *how)
        asked = make, steps, request.rows.name
        self._producer = threading.Thread(target=self._produce, args=asked, daemon=True)
        self._producer.start()
        myself = ray.get_runtime_context().current_actor
        threading.Thread(target=self._watch, args=(myself,), daemon=True).start()

    def join(self, member: str, step: int) -> Welcome:
        """Become a member that wants `step` next; refused where it is not at hand, or near.

        A service that nobody needs any more makes room for one that begins at this step.
        """
        with self._changed:
            kept = self._kept()
            if not (self._over or self._failed):
                if kept.oldest <= step <= kept.newest + kept.lag:
                    self._note(member)
                    return Welcome("inside", kept)
                alive = time.monotonic() - _DEAD_AFTER * self._sharing.idle_seconds
                if any(heard > alive for heard in self._heard.values()):
                    return Welcome("outside", kept)
            self._over = True
            self._changed.notify_all()
            return Welcome("over", kept)

    def ask(self, member: str, step: int, wait_seconds: float) -> Answer:
        """The share of `step`, at most `wait_seconds` from now."""
        with self._changed:
            self._note(member)
            if step > self._newest:
                self._newest = step
                for old in [made for made in self._shares if made < self._kept().oldest]:
                    del self._shares[old]
                self._changed.notify_all()

            def settled() -> bool:
                gone = step < self._kept().oldest
                return step in self._shares or gone or self._over or bool(self._failed)

            self._changed.wait_for(settled, wait_seconds)
            self._note(member)
            kept = self._kept()
            if step in self._shares:
                return Answer("given", kept, (self._shares[step],))
            if step < kept.oldest:
                return Answer("behind", kept)
            if self._failed or self._over:
                return Answer("failed", kept, why=self._failed or "it ends")
            return Answer("wait", kept)

    def hear(self, member: str) -> None:
        """A member lives, though it asks for nothing now: it validates, or saves."""
        with self._changed:
            self._note(member)

    def leave(self, member: str) -> None:
        """A member wants nothing more."""
        with self._changed:
            self._heard.pop(member, None)
            self._left.add(member)

    def _note(self, member: str) -> None:
        self._last_heard = time.monotonic()
        if member not in self._left:  # a wish or sign of life from before may arrive after it
            self._heard[member] = self._last_heard

    def _kept(self) -> Kept:
        # A consumer's wishes are up to AHEAD steps, in any order: none of them may push out
        # another one of the same consumer.
        oldest = self._newest - self._sharing.lag - (AHEAD - 1)
        oldest = max(self._first, oldest)
        return Kept(oldest, self._newest, self._sharing.lag, self._start)

    def _produce(
        self, make: Callable[[], Generator[pa.Table, None, None]], steps: range, name: str
    ) -> None:
        try:
            with closing(make()) as made:
                for step, table in zip(steps, made, strict=True):
                    if not self._wait_for_wish(step):
                        return
                    share = ray.put(table)
                    with self._changed:
                        if step >= self._kept().oldest:
                            self._shares[step] = share
                        self._changed.notify_all()
        except Exception as error:  # noqa: BLE001 - told to everyone who asks
            with self._changed:
                if self._over:
                    return  # `_watch` ended it in the middle
                logger.warning("the shared stream of %s failed: %s", name, error)
                self._failed = f"its pipeline failed: {first_line(error)}"
                self._changed.notify_all()

    def _wait_for_wish(self, step: int) -> bool:
        """Until someone is near `step`; False if the service ends."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._over or step <= max(self._newest, self._start) + AHEAD
            )
            return not self._over

    def _watch(self, myself: Any) -> None:
        """End the actor when nobody was heard of for long, or when another takes its place."""
        idle = self._sharing.idle_seconds
        with self._changed:
            while not self._over:
                self._changed.wait_for(lambda: self._over, idle / _LOOKS)
                if time.monotonic() - self._last_heard > idle:
                    self._over = True
            self._changed.notify_all()
        self._ending.end()
        self._producer.join(_STOP_SECONDS)
        ray.kill(myself)


def first_line(error: BaseException) -> str:
    """What an error says, without the stacks that Ray puts into it."""
    said = str(getattr(error, "cause", None) or error).strip()
    return said.splitlines()[0] if said else type(error).__name__
