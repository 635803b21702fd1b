"""Changes of colour in the embedding space: ColorAdapt (section 3.3.3) and Emb-Noise (SeiT).

Shape letters: N rows, D channels, H and W sides.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

_LEVELS = 1 << 16


def color_adapt(map_NDHW: Tensor, partner_NDHW: Tensor) -> Tensor:
    """Give each channel of a map the mean and spread of its partner's (equation 4).

    Spread is the unbiased standard deviation over the positions. A channel of (almost) zero
    spread has no structure to keep: it becomes the partner's mean, never NaN.
    """
    spread, mean = torch.std_mean(map_NDHW, dim=(2, 3), keepdim=True)
    partner_spread, partner_mean = torch.std_mean(partner_NDHW, dim=(2, 3), keepdim=True)
    # Rounding leaves a constant channel a spread near eps * |mean|, which must count as zero.
    flat = spread <= 1e-6 * (1e-6 + mean.abs())
    gain = torch.where(flat, 0.0, partner_spread / spread.masked_fill(flat, 1.0))
    return torch.addcmul(partner_mean, map_NDHW - mean, gain)


def emb_noise(
    map_NDHW: Tensor, channel_ND: Tensor, element_NDHW: Tensor, scale: float, std: float
) -> Tensor:
    """Add `scale` times one normal a channel and `std` times one a position and channel."""
    return map_NDHW + (element_NDHW * std + (channel_ND * scale)[:, :, None, None])


def normals_from_words(words_NM: Tensor) -> Tensor:
    """Two standard normals from each integer in [0, 2**32): (N, M) int64 -> (N, 2 * M) float32.

    Each half of a word picks one of 65,536 equally likely values (all below 4.4), so a GPU gets
    the same bits as a CPU, and a map's noise costs no more than the look-up.
    """
    table = _normal_levels(words_NM.device)
    halves = torch.stack([words_NM & (_LEVELS - 1), words_NM >> 16], dim=-1)  # (N, M, 2)
    return table[halves].flatten(1)


@functools.cache
def _normal_levels(device: torch.device) -> Tensor:
    """(65536,) float32: the middle of each of 65,536 equal shares of N(0, 1)."""
    share = (torch.arange(_LEVELS, dtype=torch.float64) + 0.5) / _LEVELS
    return torch.special.ndtri(share).float().to(device)
