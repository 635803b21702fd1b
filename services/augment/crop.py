"""Crops of ids and of maps: central, random, and random resized (bicubic, each row its own box).

Shape letters: N rows, D channels, H and W source sides, h and w target sides.
A box is (y, x, height, width) in cells of the source, int64.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from services.types import FloatArray, IntArray

_A = -0.75  # the cubic kernel that torch and the published code use
_TRIES = 10

RESIZED_DRAWS = 2 * _TRIES + 2
"""Uniforms a row that `resized_boxes` reads."""


def centre_boxes(rows: int, grid: tuple[int, int], size: tuple[int, int]) -> IntArray:
    """The central box of `size` in `grid` for each row: (N, 4)."""
    (height, width), (h, w) = grid, size
    box = np.array([(height - h) // 2, (width - w) // 2, h, w], dtype=np.int64)
    return np.tile(box, (rows, 1))


def random_boxes(draws_N2: FloatArray, grid: tuple[int, int], size: tuple[int, int]) -> IntArray:
    """Boxes of `size` at uniform places in `grid`: (N, 4), from two uniforms a row."""
    room = np.array([grid[0] - size[0] + 1, grid[1] - size[1] + 1])
    corner = (draws_N2.astype(np.float64) * room).astype(np.int64)  # (N, 2)
    return np.concatenate([corner, np.tile(np.array(size, dtype=np.int64), (len(corner), 1))], 1)


def resized_boxes(
    draws: FloatArray,
    grid: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> IntArray:
    """Boxes of random area and aspect (width / height): (N, 4).

    draws: (N, RESIZED_DRAWS) uniforms: ten tries of (area, log-aspect), then the place. The first
    try that fits into the grid counts; else the central box of the nearest allowed aspect.
    """
    height, width = grid
    drawn = draws.astype(np.float64)
    tries = drawn[:, : 2 * _TRIES].reshape(-1, _TRIES, 2)
    target = (area[0] + tries[..., 0] * (area[1] - area[0])) * height * width  # (N, tries)
    low, high = np.log(aspect)
    ratio = np.exp(low + tries[..., 1] * (high - low))
    w = np.rint(np.sqrt(target * ratio)).astype(np.int64)
    h = np.rint(np.sqrt(target / ratio)).astype(np.int64)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.argmax(1)
    rows = np.arange(len(draws))
    found = fits[rows, first]
    whole = width / height
    fallback_h = height if whole >= aspect[0] else round(width / aspect[0])
    fallback_w = width if whole <= aspect[1] else round(height * aspect[1])
    box_h = np.where(found, h[rows, first], fallback_h)
    box_w = np.where(found, w[rows, first], fallback_w)
    place = drawn[:, 2 * _TRIES :]
    y = np.where(found, (place[:, 0] * (height - box_h + 1)), (height - fallback_h) // 2)
    x = np.where(found, (place[:, 1] * (width - box_w + 1)), (width - fallback_w) // 2)
    return np.stack([y.astype(np.int64), x.astype(np.int64), box_h, box_w], axis=1)


def window(values: Tensor, boxes_N4: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut boxes of one `size` out: (N, ..., H, W) -> (N, ..., h, w), nothing interpolated."""
    h, w = size
    rows = torch.arange(len(values), device=values.device).view(-1, 1, 1)
    y = boxes_N4[:, 0].view(-1, 1, 1) + torch.arange(h, device=values.device).view(1, h, 1)
    x = boxes_N4[:, 1].view(-1, 1, 1) + torch.arange(w, device=values.device).view(1, 1, w)
    if values.ndim == 3:
        return values[rows, y, x]
    return values.permute(0, 2, 3, 1)[rows, y, x].permute(0, 3, 1, 2)


def resize_crop(map_NDHW: Tensor, boxes_N4: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize each row's own box to `size`, bicubic: (N, D, H, W) -> (N, D, h, w).

    Equals `F.interpolate(map[n, :, box], size, mode="bicubic")` row by row (a = -0.75,
    align_corners false, not antialiased), as two batched products with interpolation matrices
    (N, h, H) and (N, w, W): a box changes only the matrices, so no loop over rows is needed.
    Fastest for, and returned in, the channels-last memory order.
    """
    rows, channels, height, width = map_NDHW.shape
    h, w = size
    boxes = boxes_N4.to(map_NDHW.device)
    down_NhH = _cubic_matrix(boxes[:, 0], boxes[:, 2], height, h).to(map_NDHW.dtype)
    across_NwW = _cubic_matrix(boxes[:, 1], boxes[:, 3], width, w).to(map_NDHW.dtype)
    lines = map_NDHW.permute(0, 2, 3, 1).reshape(rows, height, width * channels)
    lines = torch.bmm(down_NhH, lines).view(rows * h, width, channels)
    across = across_NwW[:, None].expand(rows, h, w, width).reshape(rows * h, w, width)
    return torch.bmm(across, lines).view(rows, h, w, channels).permute(0, 3, 1, 2)


def _cubic_matrix(start_N: Tensor, length_N: Tensor, source: int, target: int) -> Tensor:
    """(N, target, source) float32: row i holds the four weights that make target cell i."""
    step = length_N.float() / target  # (N,)
    cell = torch.arange(target, device=start_N.device) + 0.5
    position = cell * step[:, None] - 0.5  # (N, target), in cells of the box
    floor = position.floor()
    t = position - floor
    columns = torch.arange(source, device=start_N.device)
    last = length_N[:, None] - 1
    matrix = t.new_zeros(len(start_N), target, source)
    weights = (_far(1 + t), _near(t), _near(1 - t), _far(2 - t))
    for tap, weight in enumerate(weights, start=-1):
        # Beyond the box its own edge is repeated, as if the box had been cut out before.
        index = (floor.long() + tap).clamp(min=0).minimum(last) + start_N[:, None]
        matrix += weight[..., None] * (index[..., None] == columns)
    return matrix


def _near(x: Tensor) -> Tensor:
    """Cubic kernel for distances up to 1."""
    return ((_A + 2) * x - (_A + 3)) * x * x + 1


def _far(x: Tensor) -> Tensor:
    """Cubic kernel for distances from 1 to 2."""
    return ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
