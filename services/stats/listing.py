"""Shards of a version: filtered, in the order asked, a page at a time. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from services.stats.facts import Facts
from services.stats.paging import Page
from services.stats.written import Written
from services.types import IntArray
from services.wire.seit import v1 as wire

ShardSort: TypeAlias = Literal[
    "row", "-row", "path", "-path", "rows", "-rows", "bytes", "-bytes",
    "bytes_per_image", "-bytes_per_image",
]  # fmt: skip


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


def shard_order(facts: Facts, query: ShardQuery) -> IntArray:
    """(n,) int64, positions of the shards asked for, in the order asked for.

    Raises: NotFoundError for a split that the version does not have.
    """
    shards, places = facts.shards, facts.places(query.split)
    found = np.arange(places.start, places.stop)
    if query.label is not None:
        at = np.flatnonzero(shards.labels == query.label)  # in the labels of all shards
        found = np.intersect1d(found, np.searchsorted(shards.starts, at, side="right") - 1)
    if query.contains:
        found = found[[query.contains in shards.paths[place] for place in found.tolist()]]
    if query.column:
        having = [place for place, names in shards.columns.items() if query.column in names]
        found = np.intersect1d(found, np.array(having, np.int64))
    name, backwards = query.sort.removeprefix("-"), query.sort.startswith("-")
    if name == "row":
        return found[::-1] if backwards else found
    if name == "path":
        by_path = sorted(found.tolist(), key=shards.paths.__getitem__, reverse=backwards)
        return np.array(by_path, np.int64)
    keys: NDArray[Any]
    if name == "bytes_per_image":
        keys = shards.sizes[found] / np.maximum(1, shards.rows[found])
    else:
        keys = {"rows": shards.rows, "bytes": shards.sizes}[name][found]
    order = np.argsort(-keys if backwards else keys, kind="stable")
    return found[order]


def shard_page(facts: Facts, order: IntArray, page: Page) -> Written[wire.ShardList]:
    """The shards at a page of the positions that `shard_order` gave."""
    places, following = page.cut(order)
    names = [to_json(split.name) for split in facts.about.splits]
    splits = np.searchsorted(facts.ends, places, side="right").tolist()
    entries = b",".join(
        b'{"split":%b,"shard":%b}' % (names[split], facts.shards.json(place))
        for split, place in zip(splits, places.tolist(), strict=True)
    )
    about = (to_json(facts.about.dataset), facts.about.version, entries, to_json(following))
    return Written(wire.ShardList, b'{"dataset":%b,"version":%d,"shards":[%b],"next":%b}' % about)
