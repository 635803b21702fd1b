"""Rows of one split of one version, in any order, through the node's cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from services.errors import InvalidInputError, NotFoundError
from services.shards.cache import ShardCache
from services.shards.checked import NamedFile
from services.shards.column_entry import ColumnValues
from services.shards.column_file import column_parts, number_type
from services.shards.entry import CachedShard
from services.shards.manifest import load_manifest
from services.shards.store import Store
from services.types import UNLABELLED, IdArray, IntArray, TokenRows
from services.wire.seit import v1 as wire


class DatasetReader:
    """A split as shards of rows; reads nothing but the manifest until rows are asked for.

    manifest: the version; source: what identifies the split in a cursor.
    spec: the form of its tokens. split: its shards. classes: name of label i.
    shard_rows: (S,) int64 rows of each shard. code_counts: (K,) int64 occurrences of each code.
    column_types: name of each added column: its type, one of validate.COLUMN_TYPES.

    NotFoundError if dataset, version or split do not stand, naming those that do.
    """

    def __init__(
        self,
        root: Store,
        dataset: str,
        *,
        split: str,
        cache: ShardCache,
        version: int | None = None,
    ) -> None:
        loaded = load_manifest(root, dataset, version)
        self.manifest = loaded.manifest
        self.spec: wire.TokenSpec = loaded.spec
        self._root = root
        self._cache = cache
        self.split = find_split(self.manifest, split)
        self.source = wire.Source(
            root=root.url,
            dataset=dataset,
            version=self.manifest.version,
            split=split,
            manifest_digest=loaded.digest,
        )
        self.classes = tuple(self.manifest.classes)
        self.shard_rows: IntArray = np.array([s.rows for s in self.split.shards], np.int64)
        self.column_types = {
            column.name: column.type for shard in self.split.shards for column in shard.columns
        }
        self.code_counts: IntArray = np.array(self.split.code_counts, np.int64)

    def __len__(self) -> int:
        return int(self.shard_rows.sum())

    def shard(self, number: int) -> CachedShard:
        """One shard, decoded; fetched if this node does not have it. Errors of ShardCache.rows."""
        return self._cache.rows(
            self._root, self.source.dataset, self.split.shards[number], self.spec
        )

    def holds(self, number: int) -> bool:
        """Whether this process has the shard at hand, so that `shard` costs nothing."""
        return self._cache.holds(self._root, self.source.dataset, self.split.shards[number])

    def keep(self, numbers: Iterable[int]) -> None:
        """Name the shards that are needed soon, or again: the node's cache holds them until the
        next call names others, and lets all others go.
        """
        shards = [self.split.shards[number] for number in numbers]
        files: list[NamedFile] = [*shards, *(file for s in shards for file in s.columns)]
        self._cache.keep(self, self._root, self.source.dataset, files)

    def let_go(self) -> None:
        """Hold nothing of the node's cache, but what was named to `keep`: no more rows are asked
        for before long. Where one is, its shard is opened again.
        """
        self._cache.let_go()

    def take(
        self, shards: IntArray, rows: IntArray, boxes: IntArray | None = None
    ) -> tuple[IdArray, IntArray]:
        """Rows in the order asked: ids (n, h, w) uint16, labels (n,) int64.

        shards, rows: (n,) int64, number of the shard and of the row in it. Where the shard is -1
        the row does not exist: its ids are 0 and its label is `UNLABELLED`.
        boxes: (n, 4) what to keep of each grid, (y, x, h, w) of one size; the whole by default.
        """
        size = self.spec.grid_height, self.spec.grid_width
        if boxes is not None and len(boxes):
            size = int(boxes[0, 2]), int(boxes[0, 3])
        ids_NHW = np.zeros((len(shards), *size), np.uint16)
        labels_N = np.full(len(shards), UNLABELLED, np.int64)

        for number, places in self._by_shard(shards):
            part = None if boxes is None else boxes[places]
            ids_NHW[places], labels_N[places] = self.shard(number).take(rows[places], part)
        return ids_NHW, labels_N

    def keys(self, shards: IntArray, rows: IntArray) -> list[str]:
        """Names of the rows, in the order asked; "" where the shard is -1."""
        names = np.full(len(shards), "", object)
        for number, places in self._by_shard(shards):
            names[places] = self.shard(number).keys(rows[places])
        return [str(name) for name in names]

    def column(self, name: str, shards: IntArray, rows: IntArray) -> ColumnValues:
        """Values of an added column, in the order asked.

        (n,) of the column's numpy type, or a list of str or bytes; 0, "" or b"" where the shard is
        -1. The files go through the node's cache, in parts of at most 32 MiB of values.

        NotFoundError if the split has no such column, or a shard asked for was appended after the
        column was added and has none of it; otherwise errors as `take`.
        """
        kind = self.column_types.get(name)
        if kind is None:
            raise NotFoundError(
                f"split {self.split.name!r} of {self.source.dataset!r} version "
                f"{self.manifest.version} has no column {name!r}; there are: "
                f"{', '.join(self.column_types) or 'none'}"
            )
        number = number_type(kind)
        blank = "" if kind == "string" else b""
        values: Any = (
            np.full(len(shards), blank, object) if number is None else np.zeros(len(shards), number)
        )
        for shard, places in self._by_shard(shards):
            for within, found in self._shard_column(self.split.shards[shard], name, rows[places]):
                values[places[within]] = found
        return values if number is not None else list(values)

    def bring_column(self, name: str, number: int) -> None:
        """Fetch a shard's files of a column into the node's cache, or find them there."""
        for part, column in column_parts(self.split.shards[number], name):
            self._cache.column(self._root, self.source.dataset, part, column)

    def _shard_column(
        self, shard: wire.Shard, name: str, rows: IntArray
    ) -> Iterator[tuple[IntArray, Any]]:
        """(places in `rows`, their values), a part of the column at a time."""
        parts = list(column_parts(shard, name))
        if not parts:
            raise NotFoundError(
                f"shard {shard.path} has no column {name!r}: its rows were appended after the "
                "column was added; give their values with `seit add-column`, or read an older "
                "version"
            )
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < shard.rows:
            raise InvalidInputError(
                f"rows {int(rows.min())} to {int(rows.max())} asked of a shard that has rows 0 to "
                f"{shard.rows - 1}: the plan and the manifest do not belong together"
            )
        for part, column in parts:
            within = np.flatnonzero((rows >= part.start) & (rows < part.start + part.rows))
            if len(within):
                entry = self._cache.column(self._root, self.source.dataset, part, column)
                yield within, entry.take(rows[within] - part.start)

    def _by_shard(self, shards: IntArray) -> Iterator[tuple[int, IntArray]]:
        """(number of a shard, its places in `shards`), once for each shard asked; never for -1."""
        if len(shards) and not -1 <= int(shards.min()) <= int(shards.max()) < len(self.shard_rows):
            raise InvalidInputError(
                f"shards {int(shards.min())} to {int(shards.max())} asked of a split that has "
                f"shards 0 to {len(self.shard_rows) - 1}: the plan belongs to another version"
            )
        if not len(shards):
            return
        order = np.argsort(shards, kind="stable")
        numbers, starts = np.unique(shards[order], return_index=True)
        for number, places in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            if number >= 0:
                yield number, places

    def iter_rows(self, batch_rows: int = 1024) -> Iterator[TokenRows]:
        """All rows in the split's order, at most `batch_rows` at a time, never across shards."""
        if batch_rows < 1:
            raise InvalidInputError(f"batch_rows is {batch_rows}, valid are 1 and more")
        for number, count in enumerate(self.shard_rows.tolist()):
            shard = self.shard(number)
            for start in range(0, count, batch_rows):
                index = np.arange(start, min(start + batch_rows, count))
                ids, labels = shard.take(index)
                yield TokenRows(ids, labels, shard.keys(index), shard.source_bytes(index))


def find_split(manifest: wire.Manifest, name: str) -> wire.Split:
    """The split of that name; NotFoundError, naming those there are, if there is none."""
    for split in manifest.splits:
        if split.name == name:
            return split
    raise NotFoundError(
        f"dataset {manifest.dataset!r} version {manifest.version} has no split {name!r}; there "
        f"are: {', '.join(split.name for split in manifest.splits) or 'none'}"
    )
