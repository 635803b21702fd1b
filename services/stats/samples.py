"""Rows of a dataset: their keys, labels and ids. The only answers for which a shard is read."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from services.errors import InvalidInputError, NotFoundError
from services.shards.cache import ShardCache
from services.shards.entry import CachedShard
from services.shards.manifest import LoadedManifest
from services.shards.reader import find_split
from services.shards.store import Store
from services.stats.paging import Page
from services.types import IdArray
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

    def page(self, loaded: LoadedManifest, split: str, page: Page) -> wire.SampleList:
        """Rows of a split in their order, without ids. Raises: NotFoundError."""
        shards = find_split(loaded.manifest, split).shards
        total = sum(shard.rows for shard in shards)
        numbers, following = page.cut(range(total))
        samples: list[wire.Sample] = []
        first = 0
        for shard in shards:
            start, end = max(numbers.start, first), min(numbers.stop, first + shard.rows)
            if start < end:
                samples += self._samples(loaded, shard, first, range(start, end))
            first += shard.rows
        return wire.SampleList(
            dataset=loaded.manifest.dataset,
            version=loaded.manifest.version,
            split=split,
            rows=total,
            samples=samples,
            next=following,
        )

    def one(self, loaded: LoadedManifest, split: str, row: int) -> wire.Sample:
        """One row, with its ids. Raises: NotFoundError."""
        shard, first = locate(loaded.manifest, split, row)
        sample = self._samples(loaded, shard, first, range(row, row + 1))[0]
        sample.ids = self.ids(loaded, split, row).ravel().tolist()
        return sample

    def ids(self, loaded: LoadedManifest, split: str, row: int) -> IdArray:
        """(H, W) uint16 ids of a row. Raises: NotFoundError."""
        shard, first = locate(loaded.manifest, split, row)
        ids_1HW, _ = self._opened(loaded, shard).take(np.array([row - first]))
        grid: IdArray = ids_1HW[0]
        return grid

    def _samples(
        self, loaded: LoadedManifest, shard: wire.Shard, first: int, rows: range
    ) -> list[wire.Sample]:
        index = np.arange(rows.start, rows.stop) - first
        held, classes = self._opened(loaded, shard), loaded.manifest.classes
        _, labels = held.take(index)
        columns = zip(
            rows, held.keys(index), labels.tolist(), held.source_bytes(index).tolist(), strict=True
        )
        return [
            wire.Sample(
                row=row,
                key=key,
                label=label,
                class_name=classes[label] if 0 <= label < len(classes) else "",
                source_bytes=source,
                shard=shard.path,
            )
            for row, key, label, source in columns
        ]

    def _opened(self, loaded: LoadedManifest, shard: wire.Shard) -> CachedShard:
        with self._opening:
            if self._cache is None:
                self._cache = self._open_cache()
        return self._cache.rows(self._root, loaded.manifest.dataset, shard, loaded.spec)


def locate(manifest: wire.Manifest, split: str, row: int) -> tuple[wire.Shard, int]:
    """(the shard that holds a row of a split, number of its first row). Raises: NotFoundError."""
    shards = find_split(manifest, split).shards
    first = 0
    for shard in shards:
        if first <= row < first + shard.rows:
            return shard, first
        first += shard.rows
    raise NotFoundError(
        f"split {split!r} of {manifest.dataset!r} version {manifest.version} has no row {row}:"
        f" its rows are 0 to {first - 1}" + ("" if first else " (it is empty)")
    )


def default_split(manifest: wire.Manifest) -> str:
    """The first split that has rows. Raises: NotFoundError for a dataset without any."""
    for split in manifest.splits:
        if any(shard.rows for shard in split.shards):
            return split.name
    raise NotFoundError(f"dataset {manifest.dataset!r} version {manifest.version} has no rows")


def check_view(view: str, known: tuple[str, ...]) -> str:
    """The view itself if it is one of those known. Raises: InvalidInputError."""
    if view not in known:
        raise InvalidInputError(f"view {view!r} is none of {', '.join(known)}")
    return view
