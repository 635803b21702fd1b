"""The codec loses nothing, for any grid and codebook, and refuses columns that do not fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import FormatError, InvalidInputError
from services.shards import codec
from services.shards.codec import Encoding
from services.types import MAX_CODES, IdArray

FORMS = [(3, None), (256, None)] + [
    (used, form) for used in (257, 511, 512, 2000) for form in (Encoding.ESCAPE, Encoding.PLANES)
]


def skewed_ids(rows: int, tokens: int, codes: int, seed: int = 0, skew: float = 0.8) -> IdArray:
    """Ids (rows, tokens) by Zipf's law over shuffled codes; uses every code if there is room."""
    rng = np.random.default_rng(seed)
    share = rng.permutation(1 / np.arange(1, codes + 1) ** skew)
    flat = rng.choice(codes, rows * tokens, p=share / share.sum()).astype(np.uint16)
    every = rng.permutation(codes)[: len(flat)]
    flat[: len(every)] = every
    return rng.permutation(flat).reshape(rows, tokens)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 12),
    tokens=st.integers(1, 300),
    codes=st.integers(1, MAX_CODES),
    skew=st.floats(0, 2),
    seed=st.integers(0, 99),
)
def test_every_form_gives_the_ids_back(
    rows: int, tokens: int, codes: int, skew: float, seed: int
) -> None:
    ids = skewed_ids(rows, tokens, codes, seed, skew)
    for form in codec.candidates(len(np.unique(ids))):
        columns = codec.encode(ids, codes, form)
        assert columns.encoding is form
        found = codec.decode(columns)
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, ids)


@pytest.mark.parametrize(("codes", "form"), FORMS)
@pytest.mark.parametrize(("rows", "tokens"), [(0, 5), (1, 1), (91, 171), (600, 1024)])
def test_any_number_of_tokens(codes: int, form: Encoding | None, rows: int, tokens: int) -> None:
    ids = skewed_ids(rows, tokens, codes)  # odd numbers, and more than are looked at in one part
    if form in codec.candidates(len(np.unique(ids))) or form is None:
        np.testing.assert_array_equal(codec.decode(codec.encode(ids, codes, form)), ids)


def test_largest_grid_and_codebook() -> None:
    ids = np.arange(5 * 128 * 128).astype(np.uint16).reshape(5, -1)  # all 65,536 ids
    for form in (Encoding.ESCAPE, Encoding.PLANES):
        np.testing.assert_array_equal(codec.decode(codec.encode(ids, MAX_CODES, form)), ids)


def test_frequent_codes_take_one_byte() -> None:
    columns = codec.encode(skewed_ids(200, 256, 400, skew=1.2), 400)
    counts = codec.count_codes(codec.decode(columns), 400)[columns.ranks]
    assert (np.diff(counts) <= 0).all()
    assert len(columns.escape_low) == counts[codec.ESCAPE_BYTE :].sum()


@pytest.mark.parametrize(("codes", "width"), [(511, 1), (512, 2)])
def test_escapes_take_two_bytes_only_beyond_511_codes(codes: int, width: int) -> None:
    columns = codec.encode(skewed_ids(8, 128, codes), codes)
    assert len(columns.escape_low) > 0
    assert len(columns.escape_high) == (width - 1) * len(columns.escape_low)


def test_choice_follows_the_measured_size() -> None:
    ids = skewed_ids(64, 256, 2000)
    assert codec.choose(ids, 2000, lambda part: part.size) is Encoding.ESCAPE
    # With only plane columns for free, planes must win.
    grid = ids.shape
    assert codec.choose(ids, 2000, lambda part: 0 if part.shape == grid else 1) is Encoding.PLANES
    assert codec.choose(ids % 200, 2000, lambda part: part.size) is Encoding.BYTE


def test_bad_arguments_name_value_and_range() -> None:
    ids = np.array([[1, 7]], np.uint16)
    with pytest.raises(InvalidInputError, match=r"id 7 is outside 0\.\.6"):
        codec.encode(ids, 7)
    with pytest.raises(InvalidInputError, match="65537"):
        codec.encode(ids, MAX_CODES + 1)
    with pytest.raises(InvalidInputError, match="16384"):
        codec.encode(ids.reshape(1, 1, 2), 8)
    with pytest.raises(InvalidInputError, match="take byte"):
        codec.encode(ids, 8, Encoding.PLANES)


def test_columns_that_do_not_fit_together_are_refused() -> None:
    good = codec.encode(skewed_ids(8, 128, 400), 400)
    damaged = [{"escape_low": good.escape_low[1:]}, {"offsets": good.offsets[1:]}]
    damaged.append({"escape_low": np.full_like(good.escape_low, 200)})
    for row, step in [(0, 1), (1, 1), (1, -1), (8, -1), (4, -(1 << 20)), (4, 1 << 20)]:
        moved = good.offsets.copy()
        moved[row] += step
        damaged.append({"offsets": moved})
    for change in damaged:
        with pytest.raises(FormatError, match="damaged"):
            codec.decode(replace(good, **change))
    with pytest.raises(FormatError, match="rank 255 in a shard of 9"):
        codec.decode(replace(good, encoding=Encoding.BYTE, ranks=good.ranks[:9]))


def test_a_damaged_part_is_refused_and_those_before_it_are_right() -> None:
    ids = skewed_ids(600, 1024, 400)
    good = codec.encode(ids, 400)
    sizes = [len(part) for part in codec.decode_parts(good)]
    assert len(sizes) > 2
    assert sum(sizes) == 600
    for row in (1, sizes[0], sizes[0] + 1, 599):
        offsets = good.offsets.copy()
        offsets[row] += 1
        before: list[IdArray] = []
        with pytest.raises(FormatError, match="damaged"):
            before.extend(codec.decode_parts(replace(good, offsets=offsets)))
        given = sum(map(len, before))
        assert row - sizes[0] <= given <= row
        if before:
            np.testing.assert_array_equal(np.concatenate(before), ids[:given])
