"""Cutting parts out of token grids, in numpy: rooms that fetch and rooms that augment share it."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from services.types import IntArray

T = TypeVar("T", bound=np.generic)


def cut(
    grids_NHW: npt.NDArray[T], index: IntArray, boxes_n4: IntArray, size: tuple[int, int]
) -> npt.NDArray[T]:
    """Boxes of one `size` out of some grids: (N, H, W), (n,), (n, 4) -> (n, h, w), a copy.

    index: which grids. boxes_n4: (y, x, height, width), inside of their grids; of these y and x
    count. Only what is kept is read, which matters where the grids are a mapped file.
    """
    count, height, width = grids_NHW.shape
    h, w = size
    whole = np.ascontiguousarray(grids_NHW)
    # The w cells of a line travel as one element of so many bytes: six times as fast as cell by
    # cell. Element (n, y, x, i) begins at cell (y + i, x).
    line = np.dtype((np.void, w * whole.itemsize))
    shape = (count, height - h + 1, width - w + 1, h)
    strides = (*whole.strides, whole.strides[1])
    lines = np.ndarray(shape, line, buffer=whole.data, strides=strides)
    kept: npt.NDArray[T] = lines[index, boxes_n4[:, 0], boxes_n4[:, 1]].view(whole.dtype)
    return kept.reshape(len(index), h, w)
