"""Subsets: as many rows of each class, nested, and settled without a look at the rows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import InvalidInputError
from services.plan.subset import Subset, SubsetSpec, quotas
from services.types import UNLABELLED, IntArray

Shards = list[IntArray]  # labels of each shard's rows


@st.composite
def splits(draw: st.DrawFn) -> Shards:
    """Shards of any sizes, empty ones too; classes spread, sorted or rare; rows without a label."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12))
    sizes[0] += 1
    classes = draw(st.integers(1, 9))
    labels = random.integers(-1, classes, sum(sizes))
    if draw(st.booleans()):
        labels = np.sort(labels)
    return np.split(labels, np.cumsum(sizes)[:-1])


def subset_of(shards: Shards, rows: int, seed: int) -> Subset:
    counts = [np.unique(labels, return_counts=True) for labels in shards]
    sizes = np.array([len(labels) for labels in shards])
    return Subset(SubsetSpec(rows, seed), sizes, counts)


def chosen(shards: Shards, subset: Subset) -> set[tuple[int, int]]:
    """(shard, row) of all rows of a subset."""
    found = [
        (number, row)
        for number, labels in enumerate(shards)
        for row in subset.inside(number, labels).tolist()
    ]
    assert len(set(found)) == len(found)
    return set(found)


@settings(deadline=None, max_examples=150)
@given(shards=splits(), seed=st.integers(0, 2**64 - 1), data=st.data())
def test_a_subset_has_its_rows_as_many_of_each_class_and_holds_the_smaller_ones(
    shards: Shards, seed: int, data: st.DataObject
) -> None:
    total = sum(map(len, shards))
    small, large = sorted(data.draw(st.lists(st.integers(1, total), min_size=2, max_size=2)))
    subset = subset_of(shards, large, seed)
    found = chosen(shards, subset)
    assert len(found) == large
    for number, labels in enumerate(shards):
        inside = subset.inside(number, labels)
        assert len(inside) == subset.shard_rows[number]
        assert (np.diff(inside) > 0).all()
    available = Counter(np.concatenate(shards).tolist())
    taken = Counter(int(shards[s][row]) for s, row in found)
    most = max(taken.values())
    for label, count in available.items():  # within one row of the others, or all it has
        assert taken[label] in (most, most - 1, count)
        assert taken[label] <= count
    assert chosen(shards, subset_of(shards, small, seed)) <= found
    assert chosen(shards, subset_of(shards, large, seed)) == found


@settings(deadline=None, max_examples=100)
@given(available=st.lists(st.integers(0, 50), min_size=1, max_size=20), data=st.data())
def test_quotas_are_the_most_even_that_there_are(available: list[int], data: st.DataObject) -> None:
    total = sum(available)
    if not total:
        return
    rows = data.draw(st.integers(1, total))
    quota = quotas(np.array(available), SubsetSpec(rows, data.draw(st.integers(0, 99))))
    assert quota.sum() == rows
    assert (quota <= available).all()
    open_ended = quota[quota < available]
    assert not len(open_ended) or quota.max() <= open_ended.min() + 1


def test_seeds_choose_other_rows() -> None:
    shards = [np.arange(60) % 3 for _ in range(4)]
    found = [frozenset(chosen(shards, subset_of(shards, 30, seed))) for seed in range(20)]
    assert len(set(found)) == len(found)
    rows = Counter(row for one in found for row in one)
    assert len(rows) > 200  # of 240: no row is favoured for its place


def test_few_shards_hold_a_small_subset_where_classes_are_spread() -> None:
    random = np.random.default_rng(0)
    shards = [random.permutation(np.arange(1000) % 20) for _ in range(50)]
    subset = subset_of(shards, 5000, seed=1)  # a tenth
    assert np.count_nonzero(subset.shard_rows) == 5


def test_rows_without_labels_are_one_class() -> None:
    shards = [np.full(size, UNLABELLED) for size in (30, 0, 12)]
    subset = subset_of(shards, 33, seed=5)
    assert subset.shard_rows.sum() == 33
    assert len(chosen(shards, subset)) == 33


@pytest.mark.parametrize(("rows", "seed"), [(0, 0), (-3, 0), (5, -1), (5, 2**64), (43, 0)])
def test_what_is_no_subset_is_refused(rows: int, seed: int) -> None:
    with pytest.raises(InvalidInputError, match="a subset of"):
        subset_of([np.zeros(30, int), np.zeros(12, int)], rows, seed)
