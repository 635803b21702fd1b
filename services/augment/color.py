"""Changes of colour in the embedding space: ColorAdapt (section 3.3.3) and Emb-Noise (SeiT).

Shape letters: N rows, D channels, H and W sides.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

_LEVELS = 1 << 16


Statistics = tuple[Tensor, Tensor]
"""Mean and spread of each channel of a map, e.g. (N, D, 1, 1) each."""


def color_adapt(map_NDHW: Tensor, partner_NDHW: Tensor) -> Tensor:
    """Give each channel of a map the mean and spread of its partner's (equation 4).

    Spread is the unbiased standard deviation over the positions. A channel of (almost) zero
    spread has no structure to keep: it becomes the partner's mean, never NaN.
    """
    gain, shift = transfer(statistics(map_NDHW), statistics(partner_NDHW))
    return torch.addcmul(shift, map_NDHW, gain)


def statistics(map_NDHW: Tensor) -> Statistics:
    """Of each channel of a map. Several times faster on a CPU than `torch.std_mean`."""
    mean = map_NDHW.mean(dim=(2, 3), keepdim=True)
    others = max(1, map_NDHW[0, 0].numel() - 1)  # a single position has no spread at all
    square = (map_NDHW - mean).square_().sum(dim=(2, 3), keepdim=True)
    return mean, (square / others).sqrt_()


def code_statistics(ids_NHW: Tensor, codebook_KD: Tensor) -> Statistics:
    """Of each channel of the maps that the codes make, from how often each code occurs.

    Where there are fewer codes than tokens this takes a tenth of the time of `statistics`.
    """
    rows, tokens = len(ids_NHW), ids_NHW[0].numel()
    codes, channels = codebook_KD.shape
    # Counts are exact in any order, and float64 tells a constant channel from one that is not.
    counts_NK = torch.zeros(rows, codes, dtype=torch.float64, device=ids_NHW.device)
    one = torch.ones((), dtype=torch.float64, device=ids_NHW.device)
    counts_NK.scatter_add_(1, ids_NHW.flatten(1).long(), one.expand(rows, tokens))
    values_KD = codebook_KD.double()
    sums = counts_NK @ torch.cat([values_KD, values_KD.square()], dim=1)
    mean, square = sums[:, :channels] / tokens, sums[:, channels:]
    variance = (square - tokens * mean.square()).clamp_(min=0) / max(1, tokens - 1)
    spread = variance.sqrt_()
    return mean.float()[:, :, None, None], spread.float()[:, :, None, None]


def transfer(own: Statistics, wanted: Statistics) -> tuple[Tensor, Tensor]:
    """Gain and shift that turn a channel's own statistics into the wanted ones."""
    (mean, spread), (wanted_mean, wanted_spread) = own, wanted
    # Rounding leaves a constant channel a spread near eps * |mean|, which must count as zero.
    flat = spread <= 1e-6 * (1e-6 + mean.abs())
    gain = torch.where(flat, 0.0, wanted_spread / spread.masked_fill(flat, 1.0))
    return gain, wanted_mean - mean * gain


def emb_noise(
    map_NDHW: Tensor, channel_ND: Tensor, element_NDHW: Tensor, scale: float, std: float
) -> Tensor:
    """Add `scale` times one normal a channel and `std` times one a position and channel."""
    return map_NDHW + color_noise(channel_ND, element_NDHW, scale, std)


def color_noise(channel_ND: Tensor, element_NDHW: Tensor, scale: float, std: float) -> Tensor:
    """What `emb_noise` adds: (N, D, H, W)."""
    return torch.add((channel_ND * scale)[:, :, None, None], element_NDHW, alpha=std)


def normals_from_levels(levels: Tensor) -> Tensor:
    """Standard normals from uniform 16-bit integers: uint16 -> float32, of the same shape.

    Each integer stands for one of 65,536 equally likely values, all below 4.4. A look-up is
    cheaper than a formula, and gives a GPU the same bits as a CPU.
    """
    table = _normal_levels(levels.device)
    return table.index_select(0, levels.int().flatten()).view(levels.shape)


@functools.cache
def _normal_levels(device: torch.device) -> Tensor:
    """(65536,) float32: the middle of each of 65,536 equal shares of N(0, 1)."""
    share = (torch.arange(_LEVELS, dtype=torch.float64) + 0.5) / _LEVELS
    levels: Tensor = torch.special.ndtri(share)
    return levels.float().to(device)
