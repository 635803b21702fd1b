"""How much of a cluster a stream may take. Knows no Ray: options are checked without it."""

from __future__ import annotations

from dataclasses import dataclass

from services.errors import InvalidInputError


@dataclass(frozen=True)
class Pool:
    """Who works for a stream.

    actors: augmentation actors at least; max_actors: at most, 0 for no more than `actors`.
    cpus, gpus: what each actor takes, fractions allowed.
    fetchers: fetch tasks at a time. Each is a process; more of them than cores only compete. They
        take no logical CPU: one always finds room, even where actors that came back after a node's
        death hold all that is left, and would else wait for its rows, and it for their CPUs.
    """

    actors: int = 1
    max_actors: int = 0
    cpus: float = 0.5
    gpus: float = 0.0
    fetchers: int = 2

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
