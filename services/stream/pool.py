"""How much of a cluster a stream may take. Knows no Ray: options are checked without it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.errors import InvalidInputError


@dataclass(frozen=True)
class Beside:
    """Actors on CPUs that make a part of a stream's batches, beside actors that have GPUs.

    actors: how many. cpus: what each takes. share: of the batches, spread evenly over the run.
    """

    actors: int
    cpus: float = 1.0
    share: float = 0.25

    def __post_init__(self) -> None:
        if self.actors < 1 or self.cpus <= 0 or not 0 < self.share < 1:
            raise InvalidInputError(
                f"actors beside those with GPUs: at least 1, each with a share of a CPU > 0, for a"
                f" share of the batches between 0 and 1, got {self.actors} actors with"
                f" {self.cpus} CPUs each and a share of {self.share}; a share of 0 or 1 needs one"
                " kind of actors only"
            )

    def makes(self, step: int) -> bool:
        """Whether these actors make the batch of `step`, rather than the others."""
        return math.floor((step + 1) * self.share) > math.floor(step * self.share)


@dataclass(frozen=True)
class Pool:
    """Who works for a stream.

    actors: augmentation actors at least; max_actors: at most, 0 for no more than `actors`.
    cpus, gpus: what each actor takes, fractions allowed.
    fetchers: fetch tasks at a time. Each is a process; more of them than cores only compete. They
        take no logical CPU: one always finds room, even where actors that came back after a node's
        death hold all that is left, and would else wait for its rows, and it for their CPUs.
    beside: actors on CPUs that work at the same time as those with GPUs; None for none.
    head_start: steps that a consumer makes itself while Ray lays its tasks down and starts their
        processes, or that of a shared stream's service: seconds in which nothing would come. Where
        actors on CPUs augment, it makes so many at most, and no more than it can while they start;
        where actors on GPUs do, none.
    grows_to_cpus, grows_to_gpus: what the cluster may come to have, with nodes that its autoscaler
        starts for actors that wait; 0 for what it has.
    """

    actors: int = 1
    max_actors: int = 0
    cpus: float = 0.5
    gpus: float = 0.0
    fetchers: int = 2
    beside: Beside | None = None
    head_start: int = 16
    grows_to_cpus: float = 0.0
    grows_to_gpus: float = 0.0

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
        if self.fetchers < 1:
            raise InvalidInputError(f"fetchers is {self.fetchers}, a stream needs at least 1")
        if self.head_start < 0:
            raise InvalidInputError(
                f"head_start is {self.head_start}, a stream's own process can read 0 steps or more"
            )

    @property
    def threads(self) -> int:
        """Of an actor: those of a pool that have a fraction of a core each would else fight for the
        same ones."""
        return max(1, math.floor(self.cpus))

    @property
    def all_actors(self) -> int:
        """Augmentation actors at least, of both kinds."""
        return self.actors + (self.beside.actors if self.beside else 0)

    @property
    def all_cpus(self) -> float:
        """What they take of CPUs together."""
        beside = self.beside.actors * self.beside.cpus if self.beside else 0.0
        return self.actors * self.cpus + beside

    def sides(self, steps: Sequence[int]) -> list[tuple[Pool, Sequence[int]]]:
        """Pools of one kind of actors each, with the steps that they make; none without steps.

        The first one's fetch tasks are all of them; those beside have one of their own.
        """
        if self.beside is None:
            return [(self, steps)]
        makes = self.beside.makes
        one = replace(self, beside=None)
        other = Pool(self.beside.actors, cpus=self.beside.cpus, fetchers=1)
        sides = [
            (one, [step for step in steps if not makes(step)]),
            (other, [step for step in steps if makes(step)]),
        ]
        return [(pool, made) for pool, made in sides if made]


@dataclass(frozen=True)
class Sharing:
    """That a stream is made once for all jobs of a cluster that ask for the same.

    lag: steps that a consumer may be behind the fastest one before it goes on by itself.
    idle_seconds: how long the service stays without a consumer.
    """

    lag: int
    idle_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.lag < 1 or self.idle_seconds <= 0:
            raise InvalidInputError(
                f"a shared stream needs a lag of at least 1 step and an idle time above 0 s, got"
                f" {self.lag} and {self.idle_seconds}"
            )
