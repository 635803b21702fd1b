"""Boxes out of grids: the same cells as slicing gives, whatever the memory they lie in."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.grids import cut


@st.composite
def cuts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]:
    """(grids, index, boxes, size) with boxes inside of their grids, grids in any memory order."""
    count, height, width = (draw(st.integers(1, most)) for most in (5, 9, 9))
    h, w = draw(st.integers(1, height)), draw(st.integers(1, width))
    kind = draw(st.sampled_from([np.uint8, np.uint16, np.int64]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (count, height, width)
    high = np.iinfo(kind).max
    layout = draw(st.sampled_from(["rows", "transposed", "every other", "backwards"]))
    if layout == "transposed":
        grids = rng.integers(0, high, shape[::-1], kind, endpoint=True).transpose(2, 1, 0)
    elif layout == "every other":
        wide = (count, height, 2 * width)
        grids = rng.integers(0, high, wide, kind, endpoint=True)[:, :, ::2]
    else:
        grids = rng.integers(0, high, shape, kind, endpoint=True)
        grids = grids[:, ::-1] if layout == "backwards" else grids
    asked = draw(st.integers(0, 7))
    boxes = np.stack(
        [
            rng.integers(0, height - h, asked, endpoint=True),
            rng.integers(0, width - w, asked, endpoint=True),
            np.full(asked, h),
            np.full(asked, w),
        ],
        axis=1,
    ).astype(np.int64)
    return grids, rng.integers(0, count, asked), boxes, (h, w)


def sliced(
    grids: np.ndarray, index: np.ndarray, boxes: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    h, w = size
    parts = [grids[n, y : y + h, x : x + w] for n, (y, x, *_) in zip(index, boxes, strict=True)]
    return np.stack(parts) if parts else np.empty((0, h, w), grids.dtype)


@settings(deadline=None, max_examples=200)
@given(cuts())
def test_a_cut_is_what_slicing_gives(
    case: tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]],
) -> None:
    grids, index, boxes, size = case
    before = grids.copy()
    found = cut(grids, index, boxes, size)
    assert found.dtype == grids.dtype
    assert found.shape == (len(index), *size)
    assert (found == sliced(grids, index, boxes, size)).all()
    found[...] = 0  # a copy: what is done to it reaches no one else
    assert (grids == before).all()


@settings(deadline=None, max_examples=40)
@given(cuts())
def test_a_mapped_file_is_cut_alike(
    case: tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]],
) -> None:
    grids, index, boxes, size = case
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grids"
        path.write_bytes(np.ascontiguousarray(grids).tobytes())
        mapped = np.memmap(path, grids.dtype, "r", shape=grids.shape)
        found = cut(mapped, index, boxes, size)
        assert (found == sliced(grids, index, boxes, size)).all()
        assert found.flags.writeable


def test_a_box_past_the_end_is_refused_and_not_read() -> None:
    grids = np.zeros((2, 5, 5), np.uint16)
    for y, x in ((3, 0), (0, 3)):
        with pytest.raises(IndexError):
            cut(grids, np.array([1]), np.array([[y, x, 3, 3]]), (3, 3))
    with pytest.raises(IndexError):
        cut(grids, np.array([2]), np.array([[0, 0, 3, 3]]), (3, 3))
