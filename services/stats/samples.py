"""Rows of a dataset: their keys, labels and ids. The only answers for which a shard is read."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from services.errors import InvalidInputError, NotFoundError
from services.shards.cache import ShardCache
from services.shards.entry import CachedShard
from services.shards.store import Store
from services.stats.content import class_name
from services.stats.facts import Facts
from services.stats.paging import Page
from services.types import IdArray, IntArray
from services.wire.seit import v1 as wire


class Rows:
    """Rows below `root`, through the node's cache: checked, and bounded in bytes on its disk.

    open_cache: called when the first row is asked for: a service that shows none touches no disk.

    Raises, besides what each method names: IntegrityError and FormatError for a damaged shard,
    StoreError.
    """

    def __init__(self, root: Store, open_cache: Callable[[], ShardCache]) -> None:
        self._root, self._open_cache = root, open_cache
        self._opening = threading.Lock()
        self._cache: ShardCache | None = None

    def page(self, facts: Facts, split: str, page: Page) -> wire.SampleList:
        """Rows of a split in their order, without ids. Raises: NotFoundError."""
        places, starts = _starts(facts, split)
        numbers, following = page.cut(range(int(starts[-1])))
        samples: list[wire.Sample] = []
        for place, first, end in zip(
            places, starts[:-1].tolist(), starts[1:].tolist(), strict=True
        ):
            found = range(max(numbers.start, first), min(numbers.stop, end))
            if found:
                samples += self._samples(facts, place, first, found)
        return wire.SampleList(
            dataset=facts.about.dataset,
            version=facts.about.version,
            split=split,
            rows=int(starts[-1]),
            samples=samples,
            next=following,
        )

    def one(self, facts: Facts, split: str, row: int) -> wire.Sample:
        """One row, with its ids. Raises: NotFoundError."""
        place, first = locate(facts, split, row)
        sample = self._samples(facts, place, first, range(row, row + 1))[0]
        sample.ids = self.ids(facts, split, row).ravel().tolist()
        return sample

    def ids(self, facts: Facts, split: str, row: int) -> IdArray:
        """(H, W) uint16 ids of a row. Raises: NotFoundError."""
        place, first = locate(facts, split, row)
        ids_1HW, _ = self._opened(facts, place).take(np.array([row - first]))
        grid: IdArray = ids_1HW[0]
        return grid

    def _samples(self, facts: Facts, place: int, first: int, rows: range) -> list[wire.Sample]:
        index = np.arange(rows.start, rows.stop) - first
        held, classes = self._opened(facts, place), facts.about.classes
        _, labels = held.take(index)
        columns = zip(
            rows, held.keys(index), labels.tolist(), held.source_bytes(index).tolist(), strict=True
        )
        return [
            wire.Sample(
                row=row,
                key=key,
                label=label,
                class_name=class_name(classes, label),
                source_bytes=source,
                shard=facts.shards.paths[place],
            )
            for row, key, label, source in columns
        ]

    def _opened(self, facts: Facts, place: int) -> CachedShard:
        with self._opening:
            if self._cache is None:
                self._cache = self._open_cache()
        shard = facts.shards.at(place)
        return self._cache.rows(self._root, facts.about.dataset, shard, facts.spec)


def _starts(facts: Facts, split: str) -> tuple[range, IntArray]:
    """(places of the split's n shards, (n + 1,) numbers of their first rows, and the end)."""
    places = facts.places(split)
    rows = facts.shards.rows[places.start : places.stop]
    return places, np.concatenate([[0], np.cumsum(rows)])


def locate(facts: Facts, split: str, row: int) -> tuple[int, int]:
    """(place of the shard that holds a row of a split, number of its first row).

    Raises: NotFoundError.
    """
    places, starts = _starts(facts, split)
    if not 0 <= row < starts[-1]:
        raise NotFoundError(
            f"split {split!r} of {facts.about.dataset!r} version {facts.about.version} has no row"
            f" {row}: its rows are 0 to {starts[-1] - 1}" + ("" if starts[-1] else " (it is empty)")
        )
    number = int(np.searchsorted(starts, row, side="right")) - 1
    return places[number], int(starts[number])


def default_split(facts: Facts) -> str:
    """The first split that has rows. Raises: NotFoundError for a dataset without any."""
    for split in facts.storage.splits:
        if split.rows:
            return split.split
    about = facts.about
    raise NotFoundError(f"dataset {about.dataset!r} version {about.version} has no rows")


def check_view(view: str, known: tuple[str, ...]) -> str:
    """The view itself if it is one of those known. Raises: InvalidInputError."""
    if view not in known:
        raise InvalidInputError(f"view {view!r} is none of {', '.join(known)}")
    return view
