"""Cutting boxes out of ids and maps, resized (bicubic) where asked; `boxes.py` chooses them.

Shape letters: N rows, D channels, H and W source sides, h and w target sides.
A box is (y, x, height, width) in cells of the source, int64.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from services.grids import cut

_A = -0.75  # the cubic kernel that torch and the published code use


def window(values: Tensor, boxes_N4: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut boxes of one `size` out: (N, ..., H, W) -> (N, ..., h, w), nothing interpolated."""
    h, w = size
    if values.ndim == 3 and values.device.type == "cpu":  # no index for each cell, no threads
        every = np.arange(len(values), dtype=np.int64)
        return torch.from_numpy(cut(values.numpy(), every, boxes_N4.numpy(), size))
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
