"""Operations on maps of DCT coefficients (paper, 4.6.2) that never leave them.

The DCT of a block is linear and orthonormal, so these give the coefficients of the changed picture
exactly, where its pixels are not clamped and its coefficients not rounded again. Four operations
need no counterpart, as they treat blocks as wholes or are linear: crops on the grid of blocks
(`crop.window`), swaps, CutMix (`mix.paste`) and Mixup (`mix.mixup`) act on maps as they stand.

A map is (N, D, H, W) as `services.tokens.dct.DCT.coefficients` gives it: D = 3 * Q, the Q kept
frequencies of Y in zigzag order, then those of Cb and of Cr, each in units of its step. Planes are
Y, Cb and Cr around 0, in units of the pixel range. Shape letters: N rows, H and W blocks, S side
of a block in pixels.

steps: (1, D, 1, 1), that of each channel, as `DCT.steps`. block: S.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.augment.color import Statistics, transfer
from services.tokens.dct import zigzag

_PLANES = 3


def hflip(map_NDHW: Tensor, flip_N: Tensor, block: int) -> Tensor:
    """Mirror left and right the pictures of the rows that `flip_N` (bool) names.

    Blocks change sides; inside a block each wave of an odd horizontal frequency changes its sign.
    """
    kept = zigzag(block)[: map_NDHW.shape[1] // _PLANES]
    signs = [-1.0 if column % 2 else 1.0 for _, column in kept] * _PLANES
    sign_D11 = torch.tensor(signs, dtype=map_NDHW.dtype).to(map_NDHW.device)[:, None, None]
    return torch.where(flip_N.view(-1, 1, 1, 1), map_NDHW.flip(3) * sign_D11, map_NDHW)


def adjust_planes(
    map_NDHW: Tensor, gain_N3: Tensor, shift_N3: Tensor, steps: Tensor, block: int
) -> Tensor:
    """Contrast and brightness: each plane times its gain, plus its shift."""
    rows, channels, height, width = map_NDHW.shape
    planes = map_NDHW.view(rows, _PLANES, channels // _PLANES, height, width)
    changed = planes * gain_N3[:, :, None, None, None]
    # The first wave is constant, 1 / S in each pixel: it alone carries a shift.
    first = steps.view(_PLANES, -1)[:, 0]
    changed[:, :, 0] += (shift_N3 * block / first)[:, :, None, None]
    return changed.view_as(map_NDHW)


def plane_statistics(map_NDHW: Tensor, steps: Tensor, block: int) -> Statistics:
    """Mean and spread (unbiased standard deviation) of the pixels of each plane, (N, 3) each."""
    rows, channels, height, width = map_NDHW.shape
    pixels = height * width * block * block
    waves = (map_NDHW * steps).view(rows, _PLANES, channels // _PLANES, -1)
    mean = waves[:, :, 0].mean(2) / block
    # The sum of squares is the same for pixels and coefficients (Parseval). Of pixels without
    # their mean: a difference of two large sums would lose the digits of a small spread.
    square = waves[:, :, 1:].square().sum((2, 3))
    square = square + (waves[:, :, 0] - mean[..., None] * block).square().sum(2)
    return mean, (square / max(1, pixels - 1)).sqrt()


def color_adapt_planes(map_NDHW: Tensor, partner_NDHW: Tensor, steps: Tensor, block: int) -> Tensor:
    """ColorAdapt (equation 4) as it is for pixels: each plane gets its partner's mean and spread.

    A plane of (almost) zero spread becomes the partner's mean, never NaN.
    """
    own = plane_statistics(map_NDHW, steps, block)
    gain, shift = transfer(own, plane_statistics(partner_NDHW, steps, block))
    return adjust_planes(map_NDHW, gain, shift, steps, block)


def plane_noise(
    map_NDHW: Tensor,
    plane_N3: Tensor,
    element_NDHW: Tensor,
    scale: float,
    std: float,
    steps: Tensor,
    block: int,
) -> Tensor:
    """Emb-Noise as it is for pixels: `scale` times one normal a plane, `std` times one a pixel.

    An orthonormal transform turns independent normals into such: those of the pixels are drawn
    as `element_NDHW`, one a coefficient.
    """
    ones = torch.ones_like(plane_N3)
    shifted = adjust_planes(map_NDHW, ones, plane_N3 * scale, steps, block)
    return shifted.addcdiv_(element_NDHW, steps, value=std)
