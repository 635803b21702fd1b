"""What a stream is asked for: small, frozen, picklable, and the same for every rank.

It travels with each fetch task and actor instead of the data's own state; a process builds the
reader and the plan, or the augmenter, from it once and keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.augment.config import RecipeConfig
from services.errors import InvalidInputError
from services.plan.epoch import OrderSpec


@dataclass(frozen=True)
class RowsRequest:
    """Rows of one split of one dataset version, in one order. All that a fetch task needs.

    root: URL of the folder that holds datasets. version: fixed, so that a commit by someone else
    never changes a running stream. digest: xxh3-128 of the manifest, part of a position's identity.
    sequential: rows in their stored order, once, without a shuffle: for evaluation.
    cache_dir, cache_bytes: the node's verified shard cache.
    """

    root: str
    dataset: str
    version: int
    digest: str
    split: str
    order: OrderSpec
    cache_dir: str
    cache_bytes: int
    sequential: bool = False

    def __post_init__(self) -> None:
        if self.cache_bytes <= 0 or not self.cache_dir:
            raise InvalidInputError(
                f"a stream needs a cache folder and a size in bytes > 0, got {self.cache_dir!r} and"
                f" {self.cache_bytes}; set SEIT_CACHE_DIR and SEIT_CACHE_BYTES"
            )


@dataclass(frozen=True)
class StreamRequest:
    """Rows, and the recipe that they go through.

    tokenadapt: URL of TokenAdapt's weights, or "" for a recipe that does without.
    """

    rows: RowsRequest
    recipe: RecipeConfig
    tokenadapt: str = ""
