"""Coefficients without loss: rows, streams, files, and damage."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import FormatError, InvalidInputError
from services.shards.coefficients import (
    MapShape,
    dense,
    from_rows,
    from_streams,
    sparse,
    to_rows,
    to_streams,
)
from services.shards.column_file import Part, part_file, read_part


def maps(
    seed: int, count: int = 3, components: int = 3, grid: tuple[int, int] = (4, 5), kept: int = 10
) -> np.ndarray:
    """(N, D, h, w) int16, most of them 0, some of them large."""
    rng = np.random.default_rng(seed)
    shape = (count, components * kept, *grid)
    values = rng.normal(0, 1, shape) ** 3 * rng.choice([0, 0, 1, 30, 3000], shape)
    return np.clip(values, -32768, 32767).astype(np.int16)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.integers(1, 4),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.integers(1, 64),
)
@settings(deadline=None, max_examples=60)
def test_every_map_comes_back_through_rows_and_through_streams(
    seed: int, count: int, components: int, grid: tuple[int, int], kept: int
) -> None:
    wanted = maps(seed, count, components, grid, kept)
    rows = sparse(wanted, kept)
    np.testing.assert_array_equal(dense(rows), wanted)
    np.testing.assert_array_equal(dense(from_rows(to_rows(rows))), wanted)
    again = from_streams(to_streams(rows), rows.shape, count)
    np.testing.assert_array_equal(dense(again), wanted)
    assert to_rows(again) == to_rows(rows)
    alone = to_rows(rows)[count // 2]
    np.testing.assert_array_equal(dense(from_rows([alone]))[0], wanted[count // 2])


@pytest.mark.parametrize("value", [0, 1, -1, 127, -128, 255, -32768, 32767])
def test_extremes(value: int) -> None:
    wanted = np.full((2, 2 * 3, 2, 2), value, np.int16)
    rows = sparse(wanted, 3)
    assert len(rows.values) == (wanted.size if value else 0)
    np.testing.assert_array_equal(dense(from_streams(to_streams(rows), rows.shape, 2)), wanted)


def test_what_cannot_be_stored_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="beyond 16 bits"):
        sparse(np.full((1, 3, 1, 1), 40_000), 1)
    with pytest.raises(InvalidInputError, match="at most 255 coefficients"):
        sparse(np.zeros((1, 300, 1, 1), np.int16), 300)
    with pytest.raises(FormatError, match="valid are"):
        MapShape(1, 0, 1, 1)


def part(rows: int) -> Part:
    return Part("dct", "coefficients", "0" * 32, 0, rows)


def test_a_file_holds_the_rows_and_is_smaller_than_their_own_form() -> None:
    rng = np.random.default_rng(0)
    wanted = np.round(rng.laplace(0, 0.3, (200, 48, 8, 8))).astype(np.int16)
    rows = to_rows(sparse(wanted, 16))
    data = part_file(pa.array(rows, pa.binary()), part(200))
    offsets, content = read_part(data, part(200), "x")
    assert [content[a:b].tobytes() for a, b in itertools.pairwise(offsets)] == rows
    assert len(data) < 0.5 * sum(map(len, rows))


@given(st.data())
@settings(deadline=None, max_examples=80)
def test_damage_is_told_or_harmless(data: st.DataObject) -> None:
    rows = to_rows(sparse(maps(1), 10))
    raw = bytearray(part_file(pa.array(rows, pa.binary()), part(3)))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FormatError):
        offsets, content = read_part(bytes(raw), part(3), "x")
        assert [content[a:b].tobytes() for a, b in itertools.pairwise(offsets)] == rows


@given(st.data())
@settings(deadline=None, max_examples=80)
def test_streams_that_lie_are_refused_or_make_a_map(data: st.DataObject) -> None:
    from dataclasses import replace

    rows = sparse(maps(2), 10)
    streams = to_streams(rows)
    at = data.draw(st.integers(0, len(streams) - 1))
    changed = bytearray(streams[at].data)
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        changed.append(0)
    streams[at] = replace(streams[at], data=bytes(changed))
    with contextlib.suppress(FormatError):
        assert dense(from_streams(streams, rows.shape, 3)).shape == (3, 30, 4, 5)
