"""Token-EDA: edits of the ids themselves, after the text augmentation of the same name (SeiT).

Shape letters: N rows, H and W grid sides, T = H*W tokens, K codes, S synonyms of a code.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from services.types import FloatArray, IntArray


def replace_synonyms(
    ids_NHW: Tensor, synonyms_KS: Tensor, replace_NHW: Tensor, pick_NHW: Tensor
) -> Tensor:
    """Exchange chosen tokens for one of their nearest codes: (N, H, W) int64.

    replace_NHW: bool, which tokens. pick_NHW: int64 in [0, S), which synonym, nearest first.
    """
    synonym_NHW = synonyms_KS[ids_NHW, pick_NHW]
    return torch.where(replace_NHW, synonym_NHW, ids_NHW)


def swap_windows(ids_NHW: Tensor, windows_N5: Tensor) -> Tensor:
    """Exchange two square windows in each row: (N, H, W).

    windows_N5: int64 (side, y0, x0, y1, x1), windows of a row disjoint; side 0 changes nothing.
    """
    rows, height, width = ids_NHW.shape
    side, y0, x0, y1, x1 = windows_N5.view(rows, 5, 1, 1).unbind(1)
    y = torch.arange(height, device=ids_NHW.device).view(1, height, 1)
    x = torch.arange(width, device=ids_NHW.device).view(1, 1, width)
    first = (y >= y0) & (y < y0 + side) & (x >= x0) & (x < x0 + side)
    second = (y >= y1) & (y < y1 + side) & (x >= x1) & (x < x1 + side)
    jump = (y1 - y0) * width + (x1 - x0)  # from a cell of the first window to that of the second
    source = y * width + x + jump * (first.long() - second.long())  # (N, H, W)
    return ids_NHW.flatten(1).gather(1, source.flatten(1)).view_as(ids_NHW)


def disjoint_windows(draws_N3: FloatArray, grid: tuple[int, int], scale: float) -> IntArray:
    """Two disjoint windows a row for `swap_windows`, (N, 5) int64, from three uniforms a row.

    The side is uniform below `scale` of the grid's shorter side (at most
    `config.MAX_SWAP_SCALE`), the first window uniform, the second uniform among the places that
    do not touch the first: they are counted and numbered, so there is nothing to retry (the
    published code draws until one fits, which can overlap, or never end).
    """
    height, width = grid
    size_u, first_u, second_u = draws_N3.astype(np.float64).T
    side = (size_u * scale * min(grid)).astype(np.int64)
    places_y, places_x = height - side + 1, width - side + 1
    first = (first_u * (places_y * places_x)).astype(np.int64)
    y0, x0 = first // places_x, first % places_x
    # Second windows that would overlap the first have their corner in this rectangle.
    top, bottom = np.maximum(y0 - side + 1, 0), np.minimum(y0 + side, places_y)
    left, right = np.maximum(x0 - side + 1, 0), np.minimum(x0 + side, places_x)
    blocked_x = right - left
    free_x = places_x - blocked_x  # free places in a row of places that crosses the rectangle
    above = top * places_x
    beside = (bottom - top) * free_x
    free = places_y * places_x - (bottom - top) * blocked_x
    index = (second_u * free).astype(np.int64)  # the free places, counted in row-major order
    inside = index - above
    column = inside % np.maximum(free_x, 1)
    y1 = np.where(
        index < above,
        index // places_x,
        np.where(
            inside < beside,
            top + inside // np.maximum(free_x, 1),
            bottom + (inside - beside) // places_x,
        ),
    )
    x1 = np.where(
        index < above,
        index % places_x,
        np.where(
            inside < beside,
            column + blocked_x * (column >= left),
            (inside - beside) % places_x,
        ),
    )
    return np.stack([side, y0, x0, y1, x1], axis=1)
