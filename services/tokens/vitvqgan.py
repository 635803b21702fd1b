"""ViT-VQGAN: the tokenizer that SeiT++ stores its data with.

Encoder and decoder are plain pre-norm transformers over patches; codes are compared, and decoded,
on the unit sphere (Yu et al., "Vector-quantized image modeling with improved VQGAN", section 3).
Parameter names equal those of the published weights.

Shape letters: N rows, C pixel channels, H and W pixels, h and w tokens, T = h*w, E width of the
transformer, K codes, D channels of a code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.errors import InvalidInputError
from services.tokens.codebook import Codebook, nearest_codes, token_spec
from services.types import MAX_CODES, MAX_GRID
from services.wire.seit import v1 as wire

MAX_DEPTH = 256
"""Most blocks of a transformer: a config read from a file must not exhaust memory."""


@dataclass(frozen=True)
class ViTSize:
    """Width, blocks, attention heads and hidden width of one transformer."""

    dim: int
    depth: int
    heads: int
    mlp: int

    def __post_init__(self) -> None:
        if self.dim < 4 or self.dim % 4:
            raise InvalidInputError(
                f"dim={self.dim} is not a positive multiple of 4: the 2-D sin-cos positions "
                "need four equal parts; choose another width"
            )
        if min(self.depth, self.heads, self.mlp) < 1 or self.depth > MAX_DEPTH:
            raise InvalidInputError(
                f"depth={self.depth}, heads={self.heads}, mlp={self.mlp} must all be at least 1, "
                f"and depth at most {MAX_DEPTH}"
            )


SMALL = ViTSize(dim=512, depth=8, heads=8, mlp=2048)
BASE = ViTSize(dim=768, depth=12, heads=12, mlp=3072)
LARGE_DECODER = ViTSize(dim=1280, depth=32, heads=16, mlp=5120)


@dataclass(frozen=True)
class ViTVQGANConfig:
    """Everything that fixes the network's shapes.

    image_size: (height, width) in pixels, multiples of `patch`.
    patch: side of the square of pixels that one token stands for.
    codes, channels: K and D. dim_head: width of one attention head. pixels: pixel channels.
    """

    image_size: tuple[int, int] = (256, 256)
    patch: int = 8
    encoder: ViTSize = BASE
    decoder: ViTSize = BASE
    codes: int = 8192
    channels: int = 32
    dim_head: int = 64
    pixels: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.codes <= MAX_CODES:
            raise InvalidInputError(
                f"codes={self.codes} is outside 1..{MAX_CODES}: ids would not fit 16 bits"
            )
        if min(self.channels, self.dim_head, self.pixels) < 1:
            raise InvalidInputError(
                f"channels={self.channels}, dim_head={self.dim_head}, pixels={self.pixels} "
                "must all be at least 1"
            )
        if max(patch_grid(self.image_size, self.patch)) > MAX_GRID:
            raise InvalidInputError(
                f"image_size={self.image_size} with patch={self.patch} gives a grid side over "
                f"{MAX_GRID} tokens, which shards do not store; use a larger patch"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) in tokens."""
        return patch_grid(self.image_size, self.patch)


def patch_grid(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Rows and columns of patches of a (height, width); `InvalidInputError` if they do not fit."""
    height, width = size
    if patch < 1 or min(size) < patch or height % patch or width % patch:
        raise InvalidInputError(
            f"a map of {height}x{width} does not divide into patches of side {patch}; "
            "height and width must be positive multiples of the patch"
        )
    return height // patch, width // patch


def sincos_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Fixed 2-D positions, (1, h*w, dim) float32: column part first, then row part.

    Each part is sin then cos of position / 10000^(i / (dim/4)). Computed in float64, so that the
    table equals the published one to the last bit of float32.
    """
    quarter = dim // 4
    frequency = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)  # (dim/4,)

    def part(length: int) -> Tensor:
        angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency  # (length, dim/4)
        return torch.cat([angle.sin(), angle.cos()], dim=1)  # (length, dim/2)

    height, width = grid
    columns = part(width)[None, :, :].expand(height, -1, -1)
    rows = part(height)[:, None, :].expand(-1, width, -1)
    return torch.cat([columns, rows], dim=2).reshape(1, height * width, dim).float()


def resize_positions(table_1TE: Tensor, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """A position table for another grid, by bicubic interpolation: (1, h*w, E) -> (1, h'*w', E)."""
    map_1Ehw = table_1TE.transpose(1, 2).reshape(1, -1, *grid)
    resized = F.interpolate(map_1Ehw, to, mode="bicubic", align_corners=False)
    return resized.flatten(2).transpose(1, 2).contiguous()


class Attention(nn.Module):
    """Multi-head self-attention with one bias-free projection for q, k and v."""

    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(self, x_NTE: Tensor) -> Tensor:
        rows, length, _ = x_NTE.shape
        qkv = self.to_qkv(x_NTE).view(rows, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (N, heads, T, dim_head)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        out: Tensor = self.to_out(mixed.reshape(rows, length, -1))
        return out


class FeedForward(nn.Module):
    """Linear, tanh, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, dim))

    def forward(self, x_NTE: Tensor) -> Tensor:
        out: Tensor = self.net(x_NTE)
        return out


class PreNorm(nn.Module):
    """x + fn(LayerNorm(x))."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x_NTE: Tensor) -> Tensor:
        out: Tensor = x_NTE + self.fn(self.norm(x_NTE))
        return out


class Transformer(nn.Module):
    """`depth` pre-norm blocks and a last LayerNorm; (N, T, E) -> (N, T, E)."""

    def __init__(self, size: ViTSize, dim_head: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                PreNorm(size.dim, Attention(size.dim, size.heads, dim_head)),
                PreNorm(size.dim, FeedForward(size.dim, size.mlp)),
            )
            for _ in range(size.depth)
        )
        self.norm = nn.LayerNorm(size.dim)

    def forward(self, x_NTE: Tensor) -> Tensor:
        for layer in self.layers:
            x_NTE = layer(x_NTE)
        out: Tensor = self.norm(x_NTE)
        return out


class ViTEncoder(nn.Module):
    """Map (N, C, H, W) -> features (N, T, E) of its `patch`-sized squares, row-major."""

    en_pos_embedding: Tensor

    def __init__(
        self,
        map_size: tuple[int, int],
        patch: int,
        size: ViTSize,
        channels: int = 3,
        dim_head: int = 64,
    ) -> None:
        super().__init__()
        self.map_size = map_size
        self.grid = patch_grid(map_size, patch)
        # A Sequential of one, because the published names carry its index.
        self.to_patch_embedding = nn.Sequential(nn.Conv2d(channels, size.dim, patch, patch))
        self.register_buffer("en_pos_embedding", sincos_positions(self.grid, size.dim))
        self.transformer = Transformer(size, dim_head)
        self.apply(init_weights)

    def forward(self, map_NCHW: Tensor) -> Tensor:
        if map_NCHW.shape[-2:] != self.map_size:
            raise InvalidInputError(
                f"got a map of {tuple(map_NCHW.shape[-2:])}, this encoder's positions are for "
                f"{self.map_size}: resize the map, or build the encoder for its size"
            )
        x_NTE = self.to_patch_embedding(map_NCHW).flatten(2).transpose(1, 2)
        out: Tensor = self.transformer(x_NTE + self.en_pos_embedding)
        return out


class ViTDecoder(nn.Module):
    """Features (N, T, E) of a (h, w) grid -> map (N, C, h*patch, w*patch)."""

    de_pos_embedding: Tensor

    def __init__(
        self,
        map_size: tuple[int, int],
        patch: int,
        size: ViTSize,
        channels: int = 3,
        dim_head: int = 64,
    ) -> None:
        super().__init__()
        self.grid = patch_grid(map_size, patch)
        self.register_buffer("de_pos_embedding", sincos_positions(self.grid, size.dim))
        self.transformer = Transformer(size, dim_head)
        # Index 0 is the reshape of the published module, which `forward` does itself.
        self.to_pixel = nn.Sequential(
            nn.Identity(), nn.ConvTranspose2d(size.dim, channels, patch, patch)
        )
        self.apply(init_weights)

    @property
    def last_weight(self) -> Tensor:
        """(E, C, patch, patch) weights of the layer that makes the pixels."""
        layer = self.to_pixel[1]
        assert isinstance(layer, nn.ConvTranspose2d)
        return layer.weight

    def forward(self, x_NTE: Tensor) -> Tensor:
        height, width = self.grid
        if x_NTE.shape[1] != height * width:
            raise InvalidInputError(
                f"got {x_NTE.shape[1]} tokens, this decoder's positions are for a grid of "
                f"{height}x{width}: give that many, or build the decoder for another size"
            )
        x_NTE = self.transformer(x_NTE + self.de_pos_embedding)
        x_NEhw = x_NTE.transpose(1, 2).reshape(len(x_NTE), -1, height, width)
        out: Tensor = self.to_pixel(x_NEhw)
        return out


def init_weights(module: nn.Module) -> None:
    """Xavier-uniform for linear maps and patch projections, zero biases (ViT's usual start)."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        # A patch projection is one linear map over the whole patch: (out, in * patch * patch).
        nn.init.xavier_uniform_(module.weight.data.flatten(1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Quantizer(nn.Module):
    """Holds the code vectors under their published name, `quantizer.embedding.weight`."""

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, channels)


class TokenizerOutput(NamedTuple):
    """What a training step of the tokenizer needs.

    reconstruction: (N, C, H, W), not clamped. ids: (N, h, w) int64.
    latents: (N*h*w, D), detached, before quantisation (for `revive_codes`); of unit length where
        codes are compared by their cosine.
    commitment_loss: pulls the encoder to its codes; codebook_loss: pulls codes to the encoder.
    """

    reconstruction: Tensor
    ids: Tensor
    latents: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor


class ViTVQGAN(nn.Module):
    """Pictures in [0, 1] <-> grids of token ids."""

    kind = "vitvqgan"

    def __init__(self, config: ViTVQGANConfig) -> None:
        super().__init__()
        self.config = config
        common = {"channels": config.pixels, "dim_head": config.dim_head}
        self.encoder = ViTEncoder(config.image_size, config.patch, config.encoder, **common)
        self.decoder = ViTDecoder(config.image_size, config.patch, config.decoder, **common)
        self.pre_quant = nn.Linear(config.encoder.dim, config.channels)
        self.post_quant = nn.Linear(config.channels, config.decoder.dim)
        self.quantizer = Quantizer(config.codes, config.channels)
        self.pre_quant.apply(init_weights)
        self.post_quant.apply(init_weights)

    @property
    def spec(self) -> wire.TokenSpec:
        """Sizes of what `encode` returns."""
        config = self.config
        return token_spec(config.grid, config.codes, config.channels, config.image_size)

    @property
    def codebook(self) -> Codebook:
        """The code vectors as they stand, detached; not normalised."""
        return Codebook(self.quantizer.embedding.weight.detach(), metric="cosine")

    @property
    def code_vectors(self) -> Tensor:
        """The code vectors (K, D) that training moves."""
        return self.quantizer.embedding.weight

    def _latents(self, images_NCHW: Tensor) -> Tensor:
        """Unit vectors before quantisation, (N, T, D)."""
        return F.normalize(self.pre_quant(self.encoder(images_NCHW)), dim=-1)

    @torch.no_grad()
    def encode(self, images_NCHW: Tensor) -> Tensor:
        """Ids (N, h, w) int64 of pictures (N, C, H, W) in [0, 1]."""
        z_NTD = self._latents(images_NCHW)
        ids_NT = nearest_codes(z_NTD, self.quantizer.embedding.weight, "cosine")
        return ids_NT.view(-1, *self.config.grid)

    @torch.no_grad()
    def decode(self, ids_Nhw: Tensor) -> Tensor:
        """Pictures (N, C, H, W) of ids (N, h, w), clamped to [0, 1]."""
        code_NTD = self.codebook.lookup(ids_Nhw.flatten(1))
        out: Tensor = self.decoder(self.post_quant(F.normalize(code_NTD, dim=-1)))
        return out.clamp(0, 1)

    def forward(self, images_NCHW: Tensor) -> TokenizerOutput:
        """Reconstruct through the codes, with gradients straight through the choice of code."""
        z_NTD = self._latents(images_NCHW)
        ids_NT = nearest_codes(z_NTD.detach(), self.quantizer.embedding.weight.detach(), "cosine")
        code_NTD = F.normalize(self.quantizer.embedding(ids_NT), dim=-1)
        decoded = self.decoder(self.post_quant(straight_through(z_NTD, code_NTD)))
        return training_output(decoded, ids_NT.view(-1, *self.config.grid), z_NTD, code_NTD)


def straight_through(latents_NTD: Tensor, codes_NTD: Tensor) -> Tensor:
    """The codes, with gradients that go to the latents as if nothing had been chosen."""
    return latents_NTD + (codes_NTD - latents_NTD).detach()


def training_output(
    reconstruction_NCHW: Tensor, ids_Nhw: Tensor, latents_NTD: Tensor, codes_NTD: Tensor
) -> TokenizerOutput:
    """A training step's output, with the two terms that bring latents and codes together."""
    return TokenizerOutput(
        reconstruction=reconstruction_NCHW,
        ids=ids_Nhw,
        latents=latents_NTD.detach().flatten(0, 1),
        commitment_loss=F.mse_loss(latents_NTD, codes_NTD.detach()),
        codebook_loss=F.mse_loss(codes_NTD, latents_NTD.detach()),
    )


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each row, (N,), for values in [0, 1].

    Equal pictures give infinity.
    """
    error = (images.float() - reference.float()).square().flatten(1).mean(1)
    return -10 * torch.log10(error)
