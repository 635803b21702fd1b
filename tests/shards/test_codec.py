"""The codec loses nothing, for any grid and codebook, and gathers rows in any order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import FormatError, InvalidInputError
from services.shards import codec
from services.shards.codec import Columns, Encoding
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
        encoded = codec.encode(ids, codes, form)
        again = codec.unpack(form, encoded.ranks, codec.pack(encoded))
        assert codec.decode(encoded).dtype == np.uint16
        np.testing.assert_array_equal(codec.decode(encoded), ids)
        np.testing.assert_array_equal(codec.decode(again), ids)


@pytest.mark.parametrize(("codes", "form"), FORMS)
@pytest.mark.parametrize("count", [0, 1, 5, 700])
def test_rows_are_gathered_in_any_order(codes: int, form: Encoding | None, count: int) -> None:
    ids = skewed_ids(90, 171, codes)  # an odd number of tokens; 700 rows pass the chunked path
    encoded = codec.encode(ids, codes, form)
    index = np.random.default_rng(1).integers(0, len(ids), count)
    np.testing.assert_array_equal(codec.decode_rows(encoded, index), ids[index])


def test_largest_grid_and_codebook() -> None:
    ids = np.arange(5 * 128 * 128).astype(np.uint16).reshape(5, -1)  # all 65,536 ids
    for form in (Encoding.ESCAPE, Encoding.PLANES):
        encoded = codec.encode(ids, MAX_CODES, form)
        columns = codec.pack(encoded)
        again = codec.unpack(form, encoded.ranks, columns)
        np.testing.assert_array_equal(codec.decode(again), ids)


def test_arrays_may_be_memory_maps(tmp_path: Path) -> None:
    ids = skewed_ids(100, 64, 391)
    encoded = codec.encode(ids, 391)
    mapped = {}
    for name in ("main", "offsets", "patches"):
        np.save(tmp_path / f"{name}.npy", getattr(encoded, name))
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    on_disk = codec.Encoded(encoded.encoding, encoded.ranks, **mapped)
    decoded = codec.decode_rows(on_disk, np.array([99, 0, 99]))
    np.testing.assert_array_equal(decoded, ids[[99, 0, 99]])
    assert type(decoded) is np.ndarray


def test_frequent_codes_take_one_byte() -> None:
    encoded = codec.encode(skewed_ids(200, 256, 400, skew=1.2), 400)
    counts = codec.count_codes(codec.decode(encoded), 400)[encoded.ranks]
    assert (np.diff(counts) <= 0).all()
    escaped = len(codec.pack(encoded).escape_low)
    assert escaped == counts[codec.ESCAPE_BYTE :].sum()


@pytest.mark.parametrize(("codes", "width"), [(511, 1), (512, 2)])
def test_escapes_take_two_bytes_only_beyond_511_codes(codes: int, width: int) -> None:
    columns = codec.pack(codec.encode(skewed_ids(8, 128, codes), codes))
    assert len(columns.escape_low) > 0
    assert len(columns.escape_high) == (width - 1) * len(columns.escape_low)


def test_choice_follows_the_measured_size() -> None:
    ids = skewed_ids(64, 256, 2000)
    assert codec.choose(ids, 2000, lambda part: part.size) is Encoding.ESCAPE
    # With only plane columns for free, planes must win.
    grid = ids.shape
    assert codec.choose(ids, 2000, lambda part: 0 if part.shape == grid else 1) is Encoding.PLANES
    assert codec.choose(ids % 200, 2000, lambda part: part.size) is Encoding.BYTE


@pytest.mark.parametrize("row", [-1, 3])
def test_rows_that_do_not_exist_are_refused(row: int) -> None:
    encoded = codec.encode(skewed_ids(3, 4, 10), 10)
    with pytest.raises(InvalidInputError, match=r"0\.\.2"):
        codec.decode_rows(encoded, np.array([0, row]))


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
    ids = skewed_ids(8, 128, 400)
    encoded = codec.encode(ids, 400)
    good = codec.pack(encoded)
    fewer = Columns(good.low, good.high, good.offsets, good.escape_low[1:], good.escape_high)
    moved = good.offsets.copy()
    moved[1] += 1
    other_rows = Columns(good.low, good.high, moved, good.escape_low, good.escape_high)
    too_high = np.full_like(good.escape_low, 200)
    beyond = Columns(good.low, good.high, good.offsets, too_high, good.escape_high)
    for columns in (fewer, other_rows, beyond):
        with pytest.raises(FormatError, match="damaged"):
            codec.unpack(Encoding.ESCAPE, encoded.ranks, columns)
    with pytest.raises(FormatError, match="rank 255 in a shard of 9"):
        codec.unpack(Encoding.BYTE, encoded.ranks[:9], good)
