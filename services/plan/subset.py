"""A fixed part of a split with as many rows of each class, settled by the manifest alone.

The rows of a class stand in a fixed order: shards shuffled by the seed, and inside a shard the
rows by a key. A subset takes the first few of each class, so of two subsets with one seed the
smaller is part of the larger. How many rows of a class each shard gives follows from the label
counts that the manifest holds; which ones they are is looked up when a shard is read anyway.
Nothing is scanned, nothing copied, and shards that give no row are never read.

The first shards of the order give all that the quotas allow: where classes are spread over the
shards, few of them hold nearly all of a small subset.

Shape letters: S shards, E entries (a class in a shard), C classes, N rows of a shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.errors import InvalidInputError
from services.plan.draws import check_seed, derive, hash_key, shuffle
from services.types import IntArray


@dataclass(frozen=True)
class SubsetSpec:
    """Which subset. rows: how many rows, at least 1. seed: 0 <= seed < 2**64."""

    rows: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InvalidInputError(
                f"a subset of {self.rows} rows: it needs at least 1, or there is nothing to read"
            )
        check_seed(f"the seed of a subset of {self.rows} rows", self.seed)


class Subset:
    """The rows of a split that a subset holds.

    shard_rows: (S,) int64, rows that each shard gives.

    labels: for each shard its classes (E_s,) and how many rows it has of each (E_s,), as the
    manifest counts them.
    rows: (S,) of each shard. Raises InvalidInputError for more rows than the split has.
    """

    def __init__(
        self, spec: SubsetSpec, rows: IntArray, labels: Sequence[tuple[IntArray, IntArray]]
    ) -> None:
        total = int(rows.sum())
        if spec.rows > total:
            raise InvalidInputError(
                f"a subset of {spec.rows} rows was asked of a split that has {total}: valid are 1"
                f" to {total}; ask for fewer, or leave the option out to read all of it"
            )
        self._seed, shards = spec.seed, len(rows)
        shard = np.repeat(np.arange(shards), [len(found) for found, _ in labels])  # (E,)
        label = np.concatenate([found for found, _ in labels])  # (E,)
        count = np.concatenate([each for _, each in labels])  # (E,)
        classes, owner = np.unique(label, return_inverse=True)  # (C,), (E,)
        available = np.zeros(len(classes), np.int64)
        np.add.at(available, owner, count)
        quota = quotas(available, spec)  # (C,)

        place = np.empty(shards, np.int64)
        place[shuffle(hash_key("subset shards", spec.seed), shards)] = np.arange(shards)
        order = np.lexsort((place[shard], owner))  # (E,) classes one after another
        shard, label, owner, count = shard[order], label[order], owner[order], count[order]
        first = np.cumsum(count) - count  # (E,) rows of all entries before
        first -= first[np.searchsorted(owner, owner)]  # of the same class
        given = np.clip(quota[owner] - first, 0, count)  # (E,)

        self.shard_rows: IntArray = np.zeros(shards, np.int64)
        np.add.at(self.shard_rows, shard, given)
        kept = np.flatnonzero(given)
        kept = kept[np.argsort(shard[kept], kind="stable")]
        self._begin = np.searchsorted(shard[kept], np.arange(shards + 1))  # (S + 1,)
        self._label, self._given = label[kept], given[kept]

    def inside(self, shard: int, labels: IntArray) -> IntArray:
        """(shard_rows[shard],) rows of a shard that belong to the subset, rising.

        labels: (N,) those of its rows.
        """
        own = slice(self._begin[shard], self._begin[shard + 1])
        wanted, given = self._label[own], self._given[own]  # rising, as classes are
        key = derive(hash_key("subset rows", self._seed, shard), np.arange(len(labels)))
        order = np.lexsort((key, labels))  # (N,) classes one after another, rows by key
        of_class = labels[order]
        place = np.arange(len(order)) - np.searchsorted(of_class, of_class)  # (N,) in its class
        at = np.minimum(np.searchsorted(wanted, of_class), max(0, len(wanted) - 1))
        taken = (wanted[at] == of_class) & (place < given[at]) if len(wanted) else []
        return np.sort(order[taken])


def quotas(available: IntArray, spec: SubsetSpec) -> IntArray:
    """(C,) rows of each class: equally many, except that a class gives no more than it has.

    available: (C,) rows of each, at least spec.rows in all. What does not divide evenly goes to
    classes in a fixed random order, one row each.
    """
    low, high = 0, int(available.max())  # sum(min(available, low)) <= rows, always
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.minimum(available, middle).sum()) <= spec.rows:
            low = middle
        else:
            high = middle - 1
    quota: IntArray = np.minimum(available, low)
    order = shuffle(hash_key("subset classes", spec.seed), len(available))  # (C,)
    more = order[available[order] > low][: spec.rows - int(quota.sum())]
    quota[more] += 1
    return quota
