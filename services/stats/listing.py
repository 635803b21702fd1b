"""Shards of a version: filtered, in the order asked, a page at a time. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from services.stats.content import chosen_splits
from services.stats.paging import Page
from services.types import IntArray
from services.wire.seit import v1 as wire

ShardSort: TypeAlias = Literal[
    "row", "-row", "path", "-path", "rows", "-rows", "bytes", "-bytes",
    "bytes_per_image", "-bytes_per_image",
]  # fmt: skip

_KEYS: Mapping[str, Callable[[wire.Shard], Any]] = {
    "path": lambda shard: shard.path,
    "rows": lambda shard: shard.rows,
    "bytes": lambda shard: shard.bytes,
    "bytes_per_image": lambda shard: shard.bytes / max(1, shard.rows),
}


@dataclass(frozen=True)
class ShardQuery:
    """Which shards, in which order. Equal ones stand in the order of their rows.

    split: only this split. label: only shards that hold a row of it. contains: only those with
    this text in their path. column: only those that have this added column. sort: "row" is the
    order of the rows; "-" before a name turns the order around.
    """

    split: str | None = None
    label: int | None = None
    contains: str = ""
    column: str = ""
    sort: ShardSort = "row"

    def keeps(self, shard: wire.Shard) -> bool:
        """Whether the shard passes all filters but that of the split."""
        labels = shard.labels.labels if shard.labels else []
        return (
            (self.label is None or self.label in labels)
            and self.contains in shard.path
            and (not self.column or any(one.name == self.column for one in shard.columns))
        )


def shard_order(manifest: wire.Manifest, query: ShardQuery) -> IntArray:
    """(n,) int64, positions in the manifest of the shards asked for, in the order asked for.

    Raises: NotFoundError for a split that the version does not have.
    """
    chosen_splits(manifest, query.split)
    found: list[tuple[int, wire.Shard]] = []
    first = 0
    for split in manifest.splits:
        if query.split in (None, split.name):
            found += [(at, one) for at, one in enumerate(split.shards, first) if query.keeps(one)]
        first += len(split.shards)
    name, backwards = query.sort.removeprefix("-"), query.sort.startswith("-")
    if name == "row":
        found = found[::-1] if backwards else found
    else:
        key = _KEYS[name]
        found.sort(key=lambda one: key(one[1]), reverse=backwards)
    return np.array([at for at, _ in found], np.int64)


def shard_page(manifest: wire.Manifest, order: IntArray, page: Page) -> wire.ShardList:
    """The shards at a page of the positions that `shard_order` gave."""
    places, following = page.cut(order)
    return wire.ShardList(
        dataset=manifest.dataset,
        version=manifest.version,
        shards=[_shard_at(manifest.splits, int(place)) for place in places],
        next=following,
    )


def _shard_at(splits: Sequence[wire.Split], place: int) -> wire.ShardInfo:
    for split in splits:
        if place < len(split.shards):
            return wire.ShardInfo(split=split.name, shard=split.shards[place])
        place -= len(split.shards)
    raise AssertionError("a position of another manifest")
