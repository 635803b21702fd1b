"""VQGAN: the convolutional tokenizer of Table 8 (the f=8 OpenImages model of CompVis).

Encoder and decoder are residual convolutional networks with a little self-attention at the
lowest resolution (Esser et al., "Taming transformers", table 7); codes are compared by plain
Euclidean distance. Parameter names equal those of the published weights.

Shape letters: N rows, C pixel channels, H and W pixels, h and w tokens, F feature channels,
K codes, D channels of a code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.errors import InvalidInputError
from services.tokens.codebook import Codebook, nearest_codes, token_spec
from services.tokens.vitvqgan import (
    Quantizer,
    TokenizerOutput,
    patch_grid,
    straight_through,
    training_output,
)
from services.types import MAX_CODES, MAX_GRID
from services.wire.seit import v1 as wire

_NORM_EPSILON = 1e-6


@dataclass(frozen=True)
class VQGANConfig:
    """Everything that fixes the network's shapes; the defaults are the published f=8 model.

    image_size: (height, width) in pixels, multiples of `patch`.
    width: feature channels at full resolution; `multipliers`: their factor at each level, from
    full resolution downwards, each level half the one before.
    blocks: residual blocks of a level in the encoder (the decoder has one more).
    attention: levels with self-attention. codes, channels: K and D. latent: channels of the
    map between encoder and `quant_conv`. groups: of group normalisation. pixels: pixel channels.
    """

    image_size: tuple[int, int] = (256, 256)
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    blocks: int = 2
    attention: tuple[int, ...] = (3,)
    codes: int = 256
    channels: int = 4
    latent: int = 4
    groups: int = 32
    pixels: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.codes <= MAX_CODES:
            raise InvalidInputError(
                f"codes={self.codes} is outside 1..{MAX_CODES}: ids would not fit 16 bits"
            )
        if not self.multipliers or min(self.multipliers) < 1:
            raise InvalidInputError(
                f"multipliers={self.multipliers}: one factor of at least 1 for each level"
            )
        if len(self.multipliers) > 8 or self.blocks > 64:
            raise InvalidInputError(
                f"{len(self.multipliers)} levels of {self.blocks} blocks: at most 8 levels "
                "and 64 blocks, or the network could not be built"
            )
        if min(self.blocks, self.channels, self.latent, self.pixels) < 1:
            raise InvalidInputError(
                f"blocks={self.blocks}, channels={self.channels}, latent={self.latent}, "
                f"pixels={self.pixels} must all be at least 1"
            )
        if self.groups < 1 or self.width < 1 or self.width % self.groups:
            raise InvalidInputError(
                f"width={self.width} does not divide into groups={self.groups} of channels to "
                "normalise over; choose a multiple"
            )
        if not set(self.attention) <= set(range(len(self.multipliers))):
            raise InvalidInputError(
                f"attention={self.attention} names levels outside 0..{len(self.multipliers) - 1}"
            )
        if max(self.grid) > MAX_GRID:
            raise InvalidInputError(
                f"image_size={self.image_size} gives a grid side over {MAX_GRID} tokens, which "
                "shards do not store; use a smaller picture"
            )

    @property
    def patch(self) -> int:
        """Side in pixels of one token's square (f)."""
        return 1 << (len(self.multipliers) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) in tokens."""
        return patch_grid(self.image_size, self.patch)

    @property
    def widths(self) -> list[int]:
        """Feature channels of each level, full resolution first."""
        return [self.width * factor for factor in self.multipliers]


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=_NORM_EPSILON)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm x))))), with a 1x1 convolution where the width changes."""

    def __init__(self, into: int, out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(into, groups)
        self.conv1 = nn.Conv2d(into, out, 3, padding=1)
        self.norm2 = _norm(out, groups)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Identity() if into == out else nn.Conv2d(into, out, 1)

    def forward(self, x_NFHW: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x_NFHW)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        out: Tensor = self.nin_shortcut(x_NFHW) + hidden
        return out


class AttentionBlock(nn.Module):
    """x + one-head self-attention over all positions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_NFHW: Tensor) -> Tensor:
        normed = self.norm(x_NFHW)
        q, k, v = (
            conv(normed).flatten(2).transpose(1, 2).unsqueeze(1)  # (N, 1, H*W, F)
            for conv in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)
        out: Tensor = x_NFHW + self.proj_out(mixed.reshape(x_NFHW.shape))
        return out


class Downsample(nn.Module):
    """Half the resolution; the padding stands only right and below, as in the published model."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_NFHW: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x_NFHW, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Twice the resolution by repetition, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_NFHW: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x_NFHW, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """Residual blocks of one resolution, attention after each if asked, then the resampling."""

    def __init__(
        self,
        widths: Sequence[int],
        groups: int,
        attend: bool,
        resample: tuple[str, nn.Module] | None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(into, out, groups) for into, out in pairwise(widths)
        )
        self.attn = nn.ModuleList(
            AttentionBlock(out, groups) for out in (widths[1:] if attend else ())
        )
        self.resample = resample[0] if resample else None
        if resample:
            self.add_module(*resample)

    def forward(self, x_NFHW: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x_NFHW = block(x_NFHW)
            if self.attn:
                x_NFHW = self.attn[index](x_NFHW)
        if self.resample:
            x_NFHW = self.get_submodule(self.resample)(x_NFHW)
        return x_NFHW


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, groups)
        self.attn_1 = AttentionBlock(channels, groups)
        self.block_2 = ResidualBlock(channels, channels, groups)

    def forward(self, x_NFHW: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x_NFHW)))
        return out


class ConvEncoder(nn.Module):
    """Pictures (N, C, H, W) -> (N, latent, h, w)."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = nn.Conv2d(config.pixels, config.width, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                [widths[level - 1] if level else config.width] + [out] * config.blocks,
                config.groups,
                attend=level in config.attention,
                resample=("downsample", Downsample(out)) if level < last else None,
            )
            for level, out in enumerate(widths)
        )
        self.mid = Middle(widths[-1], config.groups)
        self.norm_out = _norm(widths[-1], config.groups)
        self.conv_out = nn.Conv2d(widths[-1], config.latent, 3, padding=1)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        x_NFHW = self.conv_in(images_NCHW)
        for level in self.down:
            x_NFHW = level(x_NFHW)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(x_NFHW))))
        return out


class ConvDecoder(nn.Module):
    """(N, latent, h, w) -> pictures (N, C, H, W)."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = nn.Conv2d(config.latent, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.groups)
        # Numbered by resolution as in the encoder; run from the last to the first.
        self.up = nn.ModuleList(
            Level(
                [widths[min(level + 1, last)]] + [out] * (config.blocks + 1),
                config.groups,
                attend=level in config.attention,
                resample=("upsample", Upsample(out)) if level else None,
            )
            for level, out in enumerate(widths)
        )
        self.norm_out = _norm(widths[0], config.groups)
        self.conv_out = nn.Conv2d(widths[0], config.pixels, 3, padding=1)

    @property
    def last_weight(self) -> Tensor:
        """(C, F, 3, 3) weights of the layer that makes the pixels."""
        return self.conv_out.weight

    def forward(self, latent_NFhw: Tensor) -> Tensor:
        x_NFHW = self.mid(self.conv_in(latent_NFhw))
        for level in reversed(self.up):
            x_NFHW = level(x_NFHW)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x_NFHW)))
        return out


class VQGAN(nn.Module):
    """Pictures in [0, 1] <-> grids of token ids."""

    kind = "vqgan"

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ConvEncoder(config)
        self.decoder = ConvDecoder(config)
        self.quant_conv = nn.Conv2d(config.latent, config.channels, 1)
        self.post_quant_conv = nn.Conv2d(config.channels, config.latent, 1)
        self.quantize = Quantizer(config.codes, config.channels)

    @property
    def spec(self) -> wire.TokenSpec:
        """Sizes of what `encode` returns."""
        config = self.config
        return token_spec(config.grid, config.codes, config.channels, config.image_size)

    @property
    def codebook(self) -> Codebook:
        """The code vectors as they stand, detached."""
        return Codebook(self.quantize.embedding.weight.detach(), metric="euclidean")

    @property
    def code_vectors(self) -> Tensor:
        """The code vectors (K, D) that training moves."""
        return self.quantize.embedding.weight

    @torch.no_grad()
    def encode(self, images_NCHW: Tensor) -> Tensor:
        """Ids (N, h, w) int64 of pictures (N, C, H, W) in [0, 1] of the configured size."""
        return self.codebook.quantise(self._latents(images_NCHW))

    @torch.no_grad()
    def decode(self, ids_Nhw: Tensor) -> Tensor:
        """Pictures (N, C, H, W) of ids (N, h, w), clamped to [0, 1]."""
        return self._pictures(self.codebook.embed(ids_Nhw)).clamp(0, 1)

    def forward(self, images_NCHW: Tensor) -> TokenizerOutput:
        """Reconstruct through the codes, with gradients straight through the choice of code."""
        z_NTD = self._latents(images_NCHW).flatten(2).transpose(1, 2)
        ids_NT = nearest_codes(z_NTD.detach(), self.code_vectors.detach(), "euclidean")
        code_NTD = self.quantize.embedding(ids_NT)
        passed_NTD = straight_through(z_NTD, code_NTD)
        passed_NDhw = passed_NTD.transpose(1, 2).reshape(len(z_NTD), -1, *self.config.grid)
        ids_Nhw = ids_NT.view(-1, *self.config.grid)
        return training_output(self._pictures(passed_NDhw), ids_Nhw, z_NTD, code_NTD)

    def _latents(self, images_NCHW: Tensor) -> Tensor:
        """Vectors before quantisation, (N, D, h, w)."""
        if images_NCHW.shape[-2:] != self.config.image_size:
            raise InvalidInputError(
                f"got pictures of {tuple(images_NCHW.shape[-2:])}, this tokenizer is set to "
                f"{self.config.image_size}: resize them, or load it for their size"
            )
        # The network works on [-1, 1].
        out: Tensor = self.quant_conv(self.encoder(images_NCHW * 2 - 1))
        return out

    def _pictures(self, codes_NDhw: Tensor) -> Tensor:
        pixels: Tensor = self.decoder(self.post_quant_conv(codes_NDhw))
        return pixels / 2 + 0.5
