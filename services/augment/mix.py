"""Mixup and CutMix with soft targets in compact form: two labels and the weight of the first.

Shape letters: N rows, h and w sides. A box is (y, x, height, width), int64.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.types import FloatArray, IntArray

_KNOTS = 1 << 14


def mixup(values: Tensor, partner: Tensor, weight_N: Tensor) -> Tensor:
    """Blend each row with its partner: weight * values + (1 - weight) * partner, (N, ...)."""
    weight = weight_N.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
    return torch.lerp(partner, values, weight)


def paste(values: Tensor, partner: Tensor, boxes_N4: Tensor) -> Tensor:
    """CutMix: put the partner's box into each row, (N, ..., h, w), ids or maps.

    A box of no height or width changes nothing.
    """
    h, w = values.shape[-2:]
    top, left, height, width = boxes_N4.view(-1, 4, 1, 1).unbind(1)
    y = torch.arange(h, device=values.device).view(1, h, 1)
    x = torch.arange(w, device=values.device).view(1, 1, w)
    inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)  # (N, h, w)
    return torch.where(inside.view(-1, *[1] * (values.ndim - 3), h, w), partner, values)


def cutmix_boxes(weight_N: FloatArray, centre_N2: FloatArray, size: tuple[int, int]) -> IntArray:
    """Boxes (N, 4) that take about 1 - weight of the area (Yun et al., 2019, section 3.1).

    centre_N2: uniforms for the box's centre. Boxes are cut at the edges; `kept_share` gives what
    they leave.
    """
    sides = np.array(size)
    cut = np.sqrt(1 - weight_N.astype(np.float64))[:, None]  # (N, 1)
    half = (cut * sides).astype(np.int64) // 2  # (N, 2)
    centre = (centre_N2.astype(np.float64) * sides).astype(np.int64)
    low = np.clip(centre - half, 0, sides)
    high = np.clip(centre + half, 0, sides)
    return np.concatenate([low, high - low], axis=1)


def kept_share(boxes_N4: IntArray, size: tuple[int, int]) -> FloatArray:
    """Share of the area outside of each box, (N,) float32: the true weight of the own label."""
    taken = boxes_N4[:, 2] * boxes_N4[:, 3] / (size[0] * size[1])
    return (1 - taken).astype(np.float32)


def symmetric_beta(draws_N: FloatArray, alpha: float) -> FloatArray:
    """Beta(alpha, alpha) numbers from uniforms, by the inverse distribution function; alpha > 0.

    One uniform makes one number, so nothing is drawn until it is accepted. Exact to about 1e-6.
    """
    half, share = _lower_half(alpha)
    drawn = draws_N.astype(np.float64)
    lower = np.interp(np.minimum(drawn, 1 - drawn), share, half)
    return np.where(drawn < 0.5, lower, 1 - lower).astype(np.float32)


@functools.cache
def _lower_half(alpha: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Values in [0, 1/2] and the distribution function of Beta(alpha, alpha) at them."""
    grid = np.linspace(0.0, 1.0, _KNOTS)
    if alpha < 1:
        # With s = x**alpha the density's pole at 0 vanishes: dF is (1 - x)**(alpha - 1) ds.
        s = grid * 0.5**alpha
        x = s ** (1 / alpha)
        density, at = (1 - x) ** (alpha - 1), s
    else:
        x = grid * 0.5
        density, at = (4 * x * (1 - x)) ** (alpha - 1), x
    rise = (density[1:] + density[:-1]) / 2 * np.diff(at)
    total = np.concatenate([[0.0], np.cumsum(rise)])
    return x, total / total[-1] / 2
