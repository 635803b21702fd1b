"""Masked token modelling: an encoder and a decoder that recover hidden tokens (paper, 3.2).

Letters: N rows, H x W grid (tokens), T = H*W, K codes, D channels of a code, P patches, V visible
patches, p side of a patch (tokens), C width of the encoder, E width of the decoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from services.errors import InvalidInputError
from trainers.models.embed import (
    Grid,
    PatchEmbed,
    TokenEmbedding,
    check_rate,
    make_blocks,
    patch_grid,
    sincos_positions,
)
from trainers.models.sizes import MTM_DECODER, ViTSize


@dataclass(frozen=True)
class MaskRatio:
    """Share of the patches that are masked: a normal distribution cut to [low, high].

    Each step draws one ratio; `low` is also the share that is dropped before the encoder, so the
    encoder sees the same number of patches in every step (MAGE, Li et al. 2023).
    """

    mean: float = 0.45
    std: float = 0.25
    low: float = 0.4
    high: float = 1.0

    def __post_init__(self) -> None:
        if not (0.0 < self.low <= self.high <= 1.0 and self.std > 0.0):
            raise InvalidInputError(
                f"mask ratio in [{self.low}, {self.high}] with std {self.std}: needs "
                "0 < low <= high <= 1 and std > 0, or a step has nothing to learn from; "
                "the published values are 0.4, 1.0 and 0.25"
            )

    def quantile(self, uniform: float) -> float:
        """The ratio below which a share `uniform`, in [0, 1], of all steps falls."""
        start, end = (self.low - self.mean) / self.std, (self.high - self.mean) / self.std
        # Above the mean the distribution function is 1 minus something small: take its mirror
        # image there, where the small number itself is kept.
        mirror = start > 0.0
        if mirror:
            start, end, uniform = -end, -start, 1.0 - uniform
        below, above = _normal_cdf(start), _normal_cdf(end)
        share = below + uniform * (above - below)
        if 0.0 < share < 1.0:
            z = min(max(NormalDist().inv_cdf(share), start), end)
        else:  # too small for a float: all of the range lies far out, or the draw is its end
            z = end if share >= above else start
        ratio = self.mean + (-z if mirror else z) * self.std
        return min(max(ratio, self.low), self.high)


@dataclass(frozen=True)
class MTMConfig:
    """Sizes of an MTM model; the defaults are the published ones.

    grid: height and width (tokens) of what the model reads, after the crop. codes: K.
    channels: D, width of `token_emb`. patch: side of a patch (tokens).
    token_dropout: of embedded tokens. decoder_dropout: in the decoder's blocks.
    smoothing: share of the target spread evenly over all codes; the published recipe has none,
    as equation 1, although its model class has 0.1 by default.
    """

    grid: Grid
    codes: int
    channels: int
    encoder: ViTSize
    decoder: ViTSize = MTM_DECODER
    patch: int = 2
    token_dropout: float = 0.1
    decoder_dropout: float = 0.1
    smoothing: float = 0.0
    ratio: MaskRatio = MaskRatio()

    def __post_init__(self) -> None:
        check_rate("token_dropout", self.token_dropout)
        check_rate("decoder_dropout", self.decoder_dropout)
        check_rate("smoothing", self.smoothing)
        if self.dropped >= self.patch_count:
            raise InvalidInputError(
                f"a mask ratio of at least {self.ratio.low} drops all {self.patch_count} patches "
                f"of a {self.grid[0]}x{self.grid[1]} grid: the encoder would see nothing; "
                "lower it, or make the patches smaller"
            )

    @property
    def patches(self) -> Grid:
        """Patches along height and width."""
        return patch_grid(self.grid, self.patch)

    @property
    def patch_count(self) -> int:
        """P."""
        return math.prod(self.patches)

    @property
    def dropped(self) -> int:
        """Patches of a row that the encoder does not see, the same in every step."""
        return _share(self.ratio.low, self.patch_count)


class Masks(NamedTuple):
    """drop, mask: (N, P) bool; True where a patch is dropped before the encoder, or is masked."""

    drop: Tensor
    mask: Tensor


class MTMOutput(NamedTuple):
    """loss: (N,) cross-entropy in nats, mean over a row's masked patches (equation 1).

    logits: (N, T, K) in row-major order of the grid. latent: (N, 1 + V, C), class token first.
    """

    loss: Tensor
    logits: Tensor
    latent: Tensor


def _normal_cdf(z: float) -> float:
    # erfc keeps the small numbers of the lower tail, which NormalDist.cdf loses.
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def _share(ratio: float, count: int) -> int:
    # Without the slack 0.55 * 100 = 55.000000000000007 would round up to 56.
    return math.ceil(ratio * count - 1e-9)


def sample_masks(noise: Tensor, ratio_draw: float, config: MTMConfig) -> Masks:
    """Masks of a step: the patches with the smallest noise are masked, the very smallest dropped.

    noise: (N, P) uniform draws, one for each patch. ratio_draw: one uniform draw of [0, 1) for the
    step, the same on all ranks, so that each row of a global batch has as many masked patches.
    Every row gets `config.dropped` dropped patches, which are masked too; equal draws do not
    change the counts, as the patch that comes first then counts as smaller.
    """
    order = noise.argsort(dim=1, stable=True)  # (N, P)
    place = torch.arange(noise.shape[1], device=noise.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, place)  # (N, P)
    masked = _share(config.ratio.quantile(ratio_draw), noise.shape[1])
    return Masks(drop=rank < config.dropped, mask=rank < masked)


class MLMLayer(nn.Module):
    """Head: decoder features (N, P, E) -> logits (N, T, K), by likeness to the codes' vectors."""

    def __init__(self, config: MTMConfig) -> None:
        super().__init__()
        self.patches, self.patch = config.patches, config.patch
        self.fc = nn.Linear(config.decoder.dim, config.patch**2 * config.channels)
        self.ln = nn.LayerNorm(config.channels)
        self.bias = nn.Parameter(torch.zeros(1, 1, config.codes))

    def forward(self, x_NPE: Tensor, codes_KD: Tensor) -> Tensor:
        hidden = self.fc(x_NPE).unflatten(1, self.patches)  # (N, H/p, W/p, p*p*D)
        hidden = hidden.unflatten(3, (self.patch, self.patch, -1))  # (N, H/p, W/p, p, p, D)
        hidden = hidden.transpose(2, 3).flatten(1, 4)  # (N, T, D), row-major
        logits: Tensor = F.linear(self.ln(F.gelu(hidden)), codes_KD) + self.bias
        return logits


class MTM(nn.Module):
    """The pre-training model; parameter names equal the published ones."""

    pos_embed: Tensor
    decoder_pos_embed: Tensor

    def __init__(self, config: MTMConfig) -> None:
        super().__init__()
        self.config = config
        width, decoder_width = config.encoder.dim, config.decoder.dim
        self.token_emb = TokenEmbedding(config.codes, config.channels, config.token_dropout)
        self.patch_embed = PatchEmbed(config.channels, width, config.patch, overlap=False)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.mask_token_label = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = make_blocks(config.encoder)
        self.norm = nn.LayerNorm(width, eps=1e-6)

        self.decoder_embed = nn.Linear(width, decoder_width)
        self.decoder_pos_embed_learned = nn.Parameter(
            torch.zeros(1, 1 + config.patch_count, decoder_width)
        )
        self.decoder_blocks = make_blocks(config.decoder, dropout=config.decoder_dropout)
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
        self.mlm_layer = MLMLayer(config)

        self.register_buffer("pos_embed", sincos_positions(config.patches, width))
        # No one reads this table: the decoder learns its positions. Published states hold it.
        self.register_buffer("decoder_pos_embed", sincos_positions(config.patches, decoder_width))
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))  # as the matrix it is
        nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, ids_NHW: Tensor, drop_NP: Tensor, mask_NP: Tensor) -> MTMOutput:
        """Recover masked tokens.

        ids: int64. drop, mask: bool, as `sample_masks` makes them; shapes do not depend on their
        values, so a compiled model is compiled once.
        Raises InvalidInputError for other shapes, and on the CPU, not compiled, for a row whose
        number of dropped patches is not `config.dropped` (elsewhere that check would stall every
        step).
        """
        self._check(ids_NHW, drop_NP, mask_NP)
        latent = self.encode(ids_NHW, drop_NP, mask_NP)
        logits = self.decode(latent, drop_NP, mask_NP)
        return MTMOutput(self.loss(logits, ids_NHW, mask_NP), logits, latent)

    def encode(self, ids_NHW: Tensor, drop_NP: Tensor, mask_NP: Tensor) -> Tensor:
        """Features of the visible patches in the grid's order, (N, 1 + V, C), class token first."""
        x = self.embed(ids_NHW, drop_NP, mask_NP)
        for block in self.blocks:
            x = block(x)
        latent: Tensor = self.norm(x)
        return latent

    def embed(self, ids_NHW: Tensor, drop_NP: Tensor, mask_NP: Tensor) -> Tensor:
        """What the encoder's blocks read, (N, 1 + V, C): the class token and visible patches."""
        x = self.patch_embed(self.token_emb(ids_NHW).permute(0, 3, 1, 2))  # (N, P, C)
        x = torch.where(mask_NP[..., None], self.mask_token_label.to(x.dtype), x)
        x = x + self.pos_embed[:, 1:]
        # Dropped patches sort behind the visible ones, and a stable sort keeps the grid's order.
        order = drop_NP.to(torch.uint8).argsort(dim=1, stable=True)  # (N, P)
        visible = order[:, : self.config.patch_count - self.config.dropped, None]  # (N, V, 1)
        x = x.gather(1, visible.expand(-1, -1, x.shape[2]))
        cls = (self.cls_token + self.pos_embed[:, :1]).to(x.dtype)
        return torch.cat([cls.expand(len(x), -1, -1), x], dim=1)

    def decode(self, latent_NVC: Tensor, drop_NP: Tensor, mask_NP: Tensor) -> Tensor:
        """Logits (N, T, K) of all tokens."""
        x = self.restore(latent_NVC, drop_NP, mask_NP)
        logits: Tensor = self.mlm_layer(x, self.token_emb.word_embeddings.weight.detach())
        return logits

    def restore(self, latent_NVC: Tensor, drop_NP: Tensor, mask_NP: Tensor) -> Tensor:
        """The decoder's features of all patches, (N, P, E).

        Hidden patches start from the class token's feature.
        """
        x = self.decoder_embed(latent_NVC)  # (N, 1 + V, E)
        cls = x[:, :1]
        # The n-th patch that was not dropped stands at place n, behind the class token; dropped
        # ones read some other's place, and are overwritten.
        place = (~drop_NP).cumsum(dim=1)[..., None]  # (N, P, 1)
        patches = x.gather(1, place.expand(-1, -1, x.shape[2]))
        patches = torch.where((mask_NP | drop_NP)[..., None], cls, patches)
        x = torch.cat([cls, patches], dim=1) + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        restored: Tensor = self.decoder_norm(x)[:, 1:]
        return restored

    def loss(self, logits_NTK: Tensor, ids_NHW: Tensor, mask_NP: Tensor) -> Tensor:
        """(N,) cross-entropy, mean over a row's masked patches (equation 1)."""
        patch, (rows, columns) = self.config.patch, self.config.patches
        loss = F.cross_entropy(
            logits_NTK.flatten(0, 1).float(),
            ids_NHW.flatten(),
            reduction="none",
            label_smoothing=self.config.smoothing,
        )
        loss = loss.view(-1, rows, patch, columns, patch).mean(dim=(2, 4)).flatten(1)  # (N, P)
        return (loss * mask_NP).sum(dim=1) / mask_NP.sum(dim=1).clamp(min=1)

    def _check(self, ids_NHW: Tensor, drop_NP: Tensor, mask_NP: Tensor) -> None:
        config = self.config
        wanted = (len(ids_NHW), config.patch_count)
        if ids_NHW.shape[1:] != config.grid or not drop_NP.shape == mask_NP.shape == wanted:
            raise InvalidInputError(
                f"ids {tuple(ids_NHW.shape)}, drop {tuple(drop_NP.shape)} and mask "
                f"{tuple(mask_NP.shape)} do not fit a model of grid {config.grid} with "
                f"{config.patch_count} patches: nothing was computed; build the model for the crop "
                "of the data, and masks with sample_masks"
            )
        if drop_NP.device.type != "cpu" or torch.compiler.is_compiling():
            return
        if bool((drop_NP.sum(dim=1) != config.dropped).any()):
            raise InvalidInputError(
                f"rows with {sorted(set(drop_NP.sum(dim=1).tolist()))} dropped patches: the "
                f"encoder takes rows with exactly {config.dropped}; use sample_masks"
            )
