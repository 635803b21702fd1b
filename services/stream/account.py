"""What one share cost on its way, told by those who worked on it to the meter at the end."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Account:
    """The cost of one share.

    storage_seconds: of fetching its rows, from storage or from the node's cache.
    augment_seconds: of the recipe. bytes_fetched, bytes_hit, retries, refetches: see
    `services.shards.tally`. lost: damaged shards whose rows were left out. restarted: the
    augmentation actor (node and process) that worked on it, if it is one that came back after a
    failure; "" otherwise.
    """

    storage_seconds: float = 0.0
    augment_seconds: float = 0.0
    bytes_fetched: int = 0
    bytes_hit: int = 0
    retries: int = 0
    refetches: int = 0
    lost: tuple[str, ...] = ()
    restarted: str = ""
