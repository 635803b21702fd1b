"""Flip, rotation, translation and shear as one warp a row.

One composed warp instead of one pass an operation: a map is interpolated once, whatever is asked.
Shape letters: N rows, D channels, H and W sides.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def affine_matrices(
    flip_N: Tensor,
    rotate_N: Tensor,
    shift_N2: Tensor,
    shear_N2: Tensor,
    aspect: float = 1.0,
) -> Tensor:
    """Matrices (N, 2, 3) float32 for `warp`: where in the source each target point is read.

    The picture is flipped, then rotated, moved, sheared along x, then along y, about its centre.

    flip_N: bool, mirror left and right. rotate_N: degrees, clockwise as seen.
    shift_N2: (right, down) as shares of width and height. shear_N2: degrees along x and along y.
    aspect: height / width of the map, so that a rotation keeps shapes.

    The same matrices serve a picture, its tokens and a converted map of one aspect.
    """
    rows = len(flip_N)
    rotate, shift, shear = rotate_N.double().deg2rad(), shift_N2.double(), shear_N2.double()
    slope = shear.deg2rad().tan()  # (N, 2)
    ones, zeros = torch.ones_like(rotate), torch.zeros_like(rotate)

    def matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return torch.stack([a, b, c, d], dim=1).view(rows, 2, 2)

    # Inverses of the steps, last step first, in units of half the width.
    flip = matrix(torch.where(flip_N, -ones, ones), zeros, zeros, ones)
    cos, sin = rotate.cos(), rotate.sin()
    turned = flip @ matrix(cos, sin, -sin, cos)
    along_x = matrix(ones, -slope[:, 0], zeros, ones)
    along_y = matrix(ones, zeros, -slope[:, 1], ones)
    linear = turned @ along_x @ along_y
    scale = torch.tensor([1.0, aspect], dtype=torch.float64, device=rotate.device)
    offset = -(turned @ (2 * shift * scale)[..., None])  # (N, 2, 1)
    linear = linear * scale[None, None, :] / scale[None, :, None]
    return torch.cat([linear, offset / scale[None, :, None]], dim=2).float()


def warp(map_NDHW: Tensor, matrices_N23: Tensor) -> Tensor:
    """Apply one matrix to each row, bilinear: (N, D, H, W) -> (N, D, H, W).

    Outside of the source the nearest edge is repeated. Zeros are a colour in pictures, but in the
    space of TokenAdapt the zero vector stands for nothing that f ever emits, and bands of it
    would be quantised to arbitrary codes; an edge repeated is content that g knows.
    """
    matrices = matrices_N23.to(map_NDHW)
    grid = F.affine_grid(matrices, list(map_NDHW.shape), align_corners=False)
    return F.grid_sample(
        map_NDHW, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
