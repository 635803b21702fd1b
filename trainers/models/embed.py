"""From tokens to a sequence of patches, and the blocks that read it: parts of both models.

Letters: N rows, H x W grid (tokens), D channels of a code, P patches, C width of the model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from services.errors import InvalidInputError
from trainers.models.sizes import ViTSize

Grid = tuple[int, int]

_LOWEST_FREQUENCY = 1e-4  # of the sin-cos table, as in Vaswani et al. 2017


def patch_grid(grid: Grid, patch: int) -> Grid:
    """Patches along height and width. Raises InvalidInputError where `patch` leaves a rest."""
    if patch < 1 or min(grid) < patch or grid[0] % patch or grid[1] % patch:
        raise InvalidInputError(
            f"patch {patch} does not divide a grid of {grid[0]}x{grid[1]} tokens: some would "
            "belong to no patch; change the crop or the patch size"
        )
    return grid[0] // patch, grid[1] // patch


def sincos_positions(patches: Grid, dim: int) -> Tensor:
    """Fixed positions in two dimensions, (1, 1 + P, dim) float32; the class token's row is zero.

    The first half of the channels encodes the column, the second the row; each half is sines,
    then cosines, at dim / 4 frequencies falling geometrically from 1 towards 1e-4.
    Computed in float64: the same on every machine, within 1e-6 of the published float32 tables.
    """
    height, width = patches
    quarter = dim // 4
    exponent = torch.arange(quarter, dtype=torch.float64) / quarter
    frequency = _LOWEST_FREQUENCY**exponent  # (dim/4,)

    def encode(length: int) -> Tensor:  # (length, dim/2)
        angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    column = encode(width).expand(height, width, 2 * quarter)
    row = encode(height)[:, None].expand(height, width, 2 * quarter)
    table = torch.cat([column, row], dim=2).reshape(1, height * width, dim)
    return nn.functional.pad(table, (0, 0, 1, 0)).float()


def resize_positions(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """Bicubic resize of a learned table (1, 1 + P, C) from `old` patches to `new`; cls kept."""
    if old == new:
        return table
    from timm.layers.pos_embed import resample_abs_pos_embed  # see make_blocks

    resized: Tensor = resample_abs_pos_embed(table, list(new), list(old))
    return resized


class TokenEmbedding(nn.Module):
    """Learned vectors of the codes, normalised: ids (..., ) int64 -> (..., D) float."""

    def __init__(self, codes: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(codes, channels)
        self.LayerNorm = nn.LayerNorm(channels, eps=1e-6)  # the published name
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.word_embeddings.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.dropout(self.LayerNorm(self.word_embeddings(ids)))
        return embedded


class PatchEmbed(nn.Module):
    """A convolution that makes one vector of each patch: (N, D, H, W) -> (N, P, C).

    overlap: read beyond the patch's border by half a patch (rounded up) on each side: the
    Stem-Adapter of SeiT, 4x4 at stride 2. Without it a patch sees its own tokens only, which
    masking needs (paper, appendix 0.C).
    """

    def __init__(self, channels: int, dim: int, patch: int, overlap: bool) -> None:
        super().__init__()
        border = (patch + 1) // 2 if overlap else 0
        self.proj = nn.Conv2d(channels, dim, patch + 2 * border, stride=patch, padding=border)

    def forward(self, maps: Tensor) -> Tensor:
        features: Tensor = self.proj(maps)  # (N, C, H/p, W/p)
        return features.flatten(2).transpose(1, 2)


def make_blocks(size: ViTSize, dropout: float = 0.0, drop_path: float = 0.0) -> nn.ModuleList:
    """Pre-norm transformer blocks.

    dropout: of attention weights and of what each half of a block adds.
    drop_path: chance that the last block's halves are skipped for a row; rises linearly from 0.
    """
    # timm brings torchvision and all of its models: seconds that a driver, which builds no model,
    # need not spend.
    from timm.models.vision_transformer import Block

    steps = max(1, size.depth - 1)
    return nn.ModuleList(
        Block(
            size.dim,
            size.heads,
            mlp_ratio=size.mlp_ratio,
            qkv_bias=True,
            proj_drop=dropout,
            attn_drop=dropout,
            drop_path=drop_path * index / steps,
        )
        for index in range(size.depth)
    )


def check_rate(name: str, value: float) -> None:
    """Raises InvalidInputError for a share outside of [0, 1)."""
    if not 0.0 <= value < 1.0:
        raise InvalidInputError(
            f"{name} {value} is outside of [0, 1): nothing would be left to learn from; "
            "give a share such as 0.1"
        )
