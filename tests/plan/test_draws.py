from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import InvalidInputError
from services.plan.draws import Draws, derive, hash_key, permute, shuffle

quick = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 2**64 - 1)


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def many(count: int = 20_000, seed: int = 7) -> Draws:
    return Draws(seed, 3, np.arange(count))


# -- keys ---------------------------------------------------------------------------------------


def test_keys_tell_parts_apart() -> None:
    keys = [
        hash_key(),
        hash_key("ab"),
        hash_key("a", "b"),
        hash_key("a", "b", ""),
        hash_key(1, 2),
        hash_key(12),
        hash_key("12"),
        hash_key(-1),
        hash_key(2**64 - 1),
    ]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)


def test_keys_take_numpy_integers() -> None:
    assert hash_key(np.int64(5)) == hash_key(5)


def test_bits_are_pinned() -> None:
    """A change of these numbers changes every stream and augmentation: refuse it by accident."""
    draws = Draws(1, 2, rows(0, 1, 10**12))
    assert hash_key("seit", 1, -2) == 16021593933650185141
    assert permute(np.arange(10), 10, 5).tolist() == [5, 9, 2, 8, 0, 1, 6, 7, 3, 4]
    assert shuffle(5, 10).tolist() == [3, 4, 2, 5, 0, 8, 7, 9, 1, 6]
    assert (draws.uniform("op", 2) * 2**24).tolist() == [
        [14809077, 13034540],
        [8895907, 10451630],
        [8428928, 15930997],
    ]
    assert draws.normal("op", 2).view(np.uint32).tolist() == [
        [1060262376, 1027425168],
        [1067779530, 988232704],
        [1035209024, 1064490242],
    ]
    assert draws.integers("op", 1000, 2).tolist() == [[568, 254], [329, 286], [663, 175]]
    assert (draws.block_uniform("op", 2) * 2**24).tolist() == [9932355, 16633423]


# -- draws --------------------------------------------------------------------------------------


@quick
@given(seed=seeds, epoch=st.integers(0, 10**6), chosen=st.permutations(range(12)))
def test_a_row_keeps_its_numbers_in_any_batch(seed: int, epoch: int, chosen: list[int]) -> None:
    every = Draws(seed, epoch, np.arange(12))
    some = np.array(chosen[:5], dtype=np.int64)
    few = Draws(seed, epoch, some)
    np.testing.assert_array_equal(few.uniform("op", 3), every.uniform("op", 3)[some])
    np.testing.assert_array_equal(few.normal("op", 3), every.normal("op", 3)[some])
    np.testing.assert_array_equal(few.integers("op", 9, 3), every.integers("op", 9, 3)[some])


@quick
@given(seed=seeds, short=st.integers(0, 40), longer=st.integers(0, 40))
def test_more_numbers_begin_with_the_same(seed: int, short: int, longer: int) -> None:
    draws = Draws(seed, 0, rows(4, -1, 9))
    count = short + longer
    np.testing.assert_array_equal(draws.uniform("op", count)[:, :short], draws.uniform("op", short))
    np.testing.assert_array_equal(draws.normal("op", count)[:, :short], draws.normal("op", short))
    np.testing.assert_array_equal(
        draws.integers("op", 7, count)[:, :short], draws.integers("op", 7, short)
    )


def test_many_numbers_a_row_equal_those_of_the_row_alone() -> None:
    """Rows are hashed some at a time; the size of a portion must not show."""
    count = 30_000
    together = Draws(1, 1, np.arange(7)).normal("noise", count)
    for row in range(7):
        alone = Draws(1, 1, rows(row)).normal("noise", count)
        np.testing.assert_array_equal(together[row], alone[0])


def test_every_part_of_the_key_matters() -> None:
    base = Draws(1, 1, rows(1, 2))
    uniform = base.uniform("op", 4)
    assert not np.isclose(uniform[0], uniform[1]).any()
    for other in (
        Draws(2, 1, rows(1, 2)).uniform("op", 4),
        Draws(1, 2, rows(1, 2)).uniform("op", 4),
        base.uniform("other", 4),
        base.integers("op", 2**24, 4) / 2**24,
    ):
        assert not np.isclose(uniform, other).any()
    assert not np.isclose(uniform[0], base.block_uniform("op", 4)).any()


def test_uniform_is_uniform() -> None:
    numbers = many().uniform("op", 8)
    assert numbers.dtype == np.float32
    assert numbers.shape == (20_000, 8)
    assert 0 <= numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    counts = np.bincount((numbers * 50).astype(np.int64).ravel(), minlength=50)
    expected = numbers.size / 50
    assert ((counts - expected) ** 2 / expected).sum() < 49 + 5 * np.sqrt(2 * 49)
    assert np.abs(np.corrcoef(numbers.T) - np.eye(8)).max() < 0.04


def test_normal_has_the_moments_and_tails_of_a_normal() -> None:
    numbers = many().normal("op", 25).astype(np.float64)  # (20000, 25)
    assert abs(numbers.mean()) < 0.008
    assert abs(numbers.var() - 1) < 0.01
    assert abs((numbers**3).mean()) < 0.03
    assert abs((numbers**4).mean() - 3) < 0.06
    for sigma, share in ((1, 0.31731), (2, 0.04550), (3, 0.00270)):
        assert abs((np.abs(numbers) > sigma).mean() - share) < 5 * np.sqrt(share / numbers.size)
    assert np.abs(numbers).max() < 6.5
    assert np.abs(np.corrcoef(numbers.T) - np.eye(25)).max() < 0.04


@pytest.mark.parametrize("high", [1, 2, 7, 391, 8192])
def test_integers_cover_their_range_evenly(high: int) -> None:
    numbers = many().integers("op", high, 8)
    assert numbers.dtype == np.int64
    counts = np.bincount(numbers.ravel(), minlength=high)
    assert len(counts) == high
    expected = numbers.size / high
    degrees = high - 1
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square <= degrees + 5 * np.sqrt(2 * degrees)


def test_the_largest_range_of_integers_stays_inside() -> None:
    numbers = many().integers("op", 2**32, 4)
    assert numbers.min() >= 0
    assert 2**31 < numbers.max() < 2**32


@pytest.mark.parametrize("high", [0, -3, 2**32 + 1])
def test_an_impossible_range_is_refused(high: int) -> None:
    with pytest.raises(InvalidInputError, match=rf"high={high} is outside of \[1, 4294967296\]"):
        many(2).integers("op", high)


@quick
@given(seed=seeds, first=st.integers(0, 10**9), others=st.lists(st.integers(0, 10**9), max_size=6))
def test_a_block_draws_by_its_first_existing_row(seed: int, first: int, others: list[int]) -> None:
    block = Draws(seed, 0, rows(-1, -1, first, -1, *others))
    alone = Draws(seed, 0, rows(first))
    assert block.block_uniform("op", 3).shape == (3,)
    np.testing.assert_array_equal(block.block_uniform("op", 3), alone.block_uniform("op", 3))


# -- rows of several epochs ---------------------------------------------------------------------


@quick
@given(
    seed=seeds,
    pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 10**9)), min_size=1, max_size=9),
)
def test_rows_of_several_epochs_keep_the_numbers_of_their_own(
    seed: int, pairs: list[tuple[int, int]]
) -> None:
    epochs, numbers = rows(*(e for e, _ in pairs)), rows(*(r for _, r in pairs))
    mixed = Draws(seed, epochs, numbers)
    for at, (epoch, row) in enumerate(pairs):
        alone = Draws(seed, epoch, rows(row))
        np.testing.assert_array_equal(mixed.uniform("op", 3)[at], alone.uniform("op", 3)[0])
        np.testing.assert_array_equal(mixed.normal("op", 3)[at], alone.normal("op", 3)[0])
        np.testing.assert_array_equal(mixed.integers("op", 9)[at], alone.integers("op", 9)[0])
        np.testing.assert_array_equal(mixed.take(rows(at)).keys("a", "b"), alone.keys("a", "b"))
    existing = [at for at, (_, row) in enumerate(pairs) if row >= 0]
    if existing:
        first = Draws(seed, pairs[existing[0]][0], rows(pairs[existing[0]][1]))
        block = mixed.block_uniform("op", 2)
        np.testing.assert_array_equal(block, first.block_uniform("op", 2))


@quick
@given(seed=seeds, epoch=st.integers(0, 10**6), numbers=st.lists(st.integers(-1, 99), max_size=9))
def test_equal_epochs_are_one_epoch(seed: int, epoch: int, numbers: list[int]) -> None:
    one = Draws(seed, epoch, rows(*numbers))
    each = Draws(seed, np.full(len(numbers), epoch), rows(*numbers))
    np.testing.assert_array_equal(one.uniform("op", 3), each.uniform("op", 3))
    np.testing.assert_array_equal(one.normal("op", 3), each.normal("op", 3))
    np.testing.assert_array_equal(one.integers("op", 9, 3), each.integers("op", 9, 3))
    if numbers:
        np.testing.assert_array_equal(one.block_uniform("op", 3), each.block_uniform("op", 3))


def test_some_of_the_rows_keep_their_numbers() -> None:
    every = Draws(3, rows(0, 1, 1, 2), rows(7, 7, 8, 9))
    uniform = every.uniform("op", 2)
    assert not np.isclose(uniform[0], uniform[1]).any()  # one row, two epochs
    np.testing.assert_array_equal(every.take(slice(1, 3)).uniform("op", 2), uniform[1:3])
    np.testing.assert_array_equal(every.take(rows(3, 0)).uniform("op", 2), uniform[[3, 0]])


def test_keys_are_those_of_a_hash() -> None:
    draws = Draws(3, 4, rows(7, 8))
    np.testing.assert_array_equal(
        draws.keys("x", "op"), derive(hash_key("x", 3, 4, "op"), draws.rows)
    )


def test_levels_are_the_quarters_of_hashed_words() -> None:
    draws = Draws(3, 4, rows(7, -1))
    levels = draws.levels("op", 5)
    for row, start in enumerate(draws.keys("levels", "op")):
        words = derive(0, start + np.arange(2, dtype=np.uint64))
        np.testing.assert_array_equal(levels[row], words.astype("<u8").view("<u2")[:5])
    np.testing.assert_array_equal(draws.levels("op", 9)[:, :5], levels)
    assert abs(draws.levels("op", 1 << 14).mean() / 65535 - 0.5) < 0.01


def test_epochs_of_another_form_are_refused() -> None:
    for epoch in (np.zeros(3, np.int64), np.zeros(2, np.float32), np.array(4)):
        with pytest.raises(InvalidInputError, match=r"epoch must be an integer or \(2,\) int64"):
            Draws(1, epoch, rows(1, 2))  # type: ignore[arg-type]


def test_a_block_of_missing_rows_and_an_empty_one_can_draw() -> None:
    assert np.isfinite(Draws(1, 0, rows(-1, -1)).block_uniform("op", 2)).all()
    empty = Draws(1, 0, rows())
    assert empty.uniform("op", 2).shape == (0, 2)
    assert empty.normal("op", 0).shape == (0, 0)
    assert empty.block_uniform("op").shape == (1,)


def test_missing_rows_get_numbers_like_others() -> None:
    numbers = Draws(1, 0, rows(-1, 5, -1)).normal("op", 4)
    assert np.isfinite(numbers).all()
    np.testing.assert_array_equal(numbers[0], numbers[2])


def test_rows_of_another_form_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"rows must be \(N,\) int64"):
        Draws(1, 0, np.zeros((2, 2), dtype=np.int64))
    with pytest.raises(InvalidInputError, match="float64"):
        Draws(1, 0, np.zeros(2))  # type: ignore[arg-type]


# -- shuffles -----------------------------------------------------------------------------------


@quick
@given(size=st.integers(1, 3000), key=seeds)
def test_permute_is_a_permutation(size: int, key: int) -> None:
    image = permute(np.arange(size), size, key)
    assert image.dtype == np.int64
    np.testing.assert_array_equal(np.sort(image), np.arange(size))


@quick
@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=8), key=seeds)
def test_permute_takes_a_size_and_key_for_each_index(sizes: list[int], key: int) -> None:
    keys = derive(key, np.arange(len(sizes)))
    index = np.concatenate([np.arange(size) for size in sizes])
    owner = np.repeat(np.arange(len(sizes)), sizes)
    together = permute(index, np.array(sizes)[owner], keys[owner])
    apart = [permute(np.arange(n), n, k) for n, k in zip(sizes, keys, strict=True)]
    np.testing.assert_array_equal(together, np.concatenate(apart))


@quick
@given(size=st.integers(1, 2**61), key=seeds, data=st.data())
def test_permute_of_a_huge_range_stays_inside_and_one_to_one(
    size: int, key: int, data: st.DataObject
) -> None:
    chosen = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=50))
    index = np.array(sorted(chosen), dtype=np.int64)
    image = permute(index, size, key)
    assert ((image >= 0) & (image < size)).all()
    assert len(np.unique(image)) == len(index)


def test_permute_keeps_the_shape() -> None:
    grid = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(permute(grid, 12, 1).ravel(), permute(np.arange(12), 12, 1))
    assert permute(np.empty((0, 3), dtype=np.int64), 5, 1).shape == (0, 3)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_permute_reaches_every_order_of_a_small_range_about_as_often(size: int) -> None:
    trials = 100 * len(list(permutations(range(size))))
    keys = derive(9, np.arange(trials))
    images = permute(np.tile(np.arange(size), (trials, 1)), size, np.repeat(keys[:, None], size, 1))
    orders, counts = np.unique(images, axis=0, return_counts=True)
    assert len(orders) == trials // 100
    assert counts.min() > 40
    assert counts.max() < 300


def test_permute_sends_each_place_everywhere() -> None:
    size, trials = 40, 8000
    keys = derive(3, np.arange(trials))
    images = permute(np.tile(np.arange(size), (trials, 1)), size, np.repeat(keys[:, None], size, 1))
    counts = np.stack([np.bincount(column, minlength=size) for column in images.T])  # (40, 40)
    chi_square = ((counts - trials / size) ** 2 / (trials / size)).sum()
    degrees = (size - 1) ** 2
    assert abs(chi_square - degrees) < 5 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("index", [-1, 5])
def test_permute_refuses_an_index_outside(index: int) -> None:
    with pytest.raises(InvalidInputError, match=rf"index {index} is outside of \[0, 5\)"):
        permute(np.array([1, index]), 5, 1)


@quick
@given(groups=st.lists(st.integers(0, 6), max_size=200), key=seeds)
def test_shuffle_is_a_permutation_group_by_group(groups: list[int], key: int) -> None:
    group = np.array(groups, dtype=np.int64)
    order = shuffle(key, len(group), group)
    np.testing.assert_array_equal(np.sort(order), np.arange(len(group)))
    np.testing.assert_array_equal(group[order], np.sort(group))
    np.testing.assert_array_equal(np.sort(shuffle(key, len(group))), np.arange(len(group)))


def test_shuffle_depends_on_its_key_and_moves_things() -> None:
    assert (shuffle(1, 1000) != shuffle(2, 1000)).mean() > 0.98
    assert (shuffle(1, 1000) != np.arange(1000)).mean() > 0.98
