"""Rows of one split of one version, in any order, through the node's cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from services.errors import InvalidInputError, NotFoundError
from services.shards.cache import ShardCache
from services.shards.entry import CachedShard
from services.shards.manifest import load_manifest
from services.shards.store import Store
from services.types import UNLABELLED, IdArray, IntArray, TokenRows
from services.wire.seit import v1 as wire


class DatasetReader:
    """A split as shards of rows; reads nothing but the manifest until rows are asked for.

    manifest: the version; source: what identifies the split in a cursor.
    spec: the form of its tokens. classes: name of label i.
    shard_rows: (S,) int64 rows of each shard. code_counts: (K,) int64 occurrences of each code.

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
        self._split = find_split(self.manifest, split)
        self.source = wire.Source(
            root=root.url,
            dataset=dataset,
            version=self.manifest.version,
            split=split,
            manifest_digest=loaded.digest,
        )
        self.classes = tuple(self.manifest.classes)
        self.shard_rows: IntArray = np.array([s.rows for s in self._split.shards], np.int64)
        self.code_counts: IntArray = np.array(self._split.code_counts, np.int64)

    def __len__(self) -> int:
        return int(self.shard_rows.sum())

    def shard(self, number: int) -> CachedShard:
        """One shard, decoded; fetched if this node does not have it. Errors of ShardCache.rows."""
        return self._cache.rows(
            self._root, self.source.dataset, self._split.shards[number], self.spec
        )

    def take(self, shards: IntArray, rows: IntArray) -> tuple[IdArray, IntArray]:
        """Rows in the order asked: ids (n, H, W) uint16, labels (n,) int64.

        shards, rows: (n,) int64, number of the shard and of the row in it. Where the shard is -1
        the row does not exist: its ids are 0 and its label is `UNLABELLED`.
        """
        ids_NHW = np.zeros((len(shards), self.spec.grid_height, self.spec.grid_width), np.uint16)
        labels_N = np.full(len(shards), UNLABELLED, np.int64)

        def put(shard: CachedShard, places: IntArray, index: IntArray) -> None:
            ids_NHW[places], labels_N[places] = shard.take(index)

        self._each_shard(shards, rows, put)
        return ids_NHW, labels_N

    def keys(self, shards: IntArray, rows: IntArray) -> list[str]:
        """Names of the rows, in the order asked; "" where the shard is -1."""
        names = np.full(len(shards), "", object)

        def put(shard: CachedShard, places: IntArray, index: IntArray) -> None:
            names[places] = shard.keys(index)

        self._each_shard(shards, rows, put)
        return [str(name) for name in names]

    def _each_shard(
        self,
        shards: IntArray,
        rows: IntArray,
        put: Callable[[CachedShard, IntArray, IntArray], None],
    ) -> None:
        """Call `put(shard, places in the answer, rows of the shard)` once for each shard asked."""
        if len(shards) and not -1 <= int(shards.min()) <= int(shards.max()) < len(self.shard_rows):
            raise InvalidInputError(
                f"shards {int(shards.min())} to {int(shards.max())} asked of a split that has "
                f"shards 0 to {len(self.shard_rows) - 1}: the plan belongs to another version"
            )
        order = np.argsort(shards, kind="stable")
        numbers, starts = np.unique(shards[order], return_index=True)
        for number, places in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            if number >= 0:
                put(self.shard(number), places, rows[places])

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
