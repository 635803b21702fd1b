"""Which part of a grid a crop keeps. numpy only: processes that merely fetch rows cut them too,
and do not wait for torch to load.

A box is (y, x, height, width) in cells of the source, int64. Shape letters: N rows, H and W
source sides, h and w target sides.
"""

from __future__ import annotations

import numpy as np

from services.augment.config import CropConfig
from services.plan.draws import Draws
from services.types import FloatArray, IntArray

_TRIES = 10

RESIZED_DRAWS = 2 * _TRIES + 2
"""Uniforms a row that `resized_boxes` reads."""

PLAIN_CROP = "plain.crop"
"""Operation under which the crop of rows outside of the TokenAdapt path draws."""


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


def choose_boxes(
    config: CropConfig, draws: Draws, op: str, grid: tuple[int, int], size: tuple[int, int]
) -> IntArray:
    """Boxes (n, 4) of the cut; of exactly `size` unless the crop is a resized one."""
    if config.kind == "resized":
        return resized_boxes(draws.uniform(op, RESIZED_DRAWS), grid, config.area, config.aspect)
    if config.kind == "random":
        return random_boxes(draws.uniform(op, 2), grid, size)
    return centre_boxes(len(draws.rows), grid, size)
