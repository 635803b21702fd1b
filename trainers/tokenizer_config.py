"""Runs that train tokenizers: their networks, what their codebooks cost, and what is judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from services.tokens.vitvqgan import ViTVQGAN, ViTVQGANConfig
from services.tokens.vqgan import VQGAN, VQGANConfig
from trainers.data_config import check_share, require
from trainers.picture_config import TransformerConfig, ViewRun
from trainers.tokenizer_losses import check_sides


@dataclass(frozen=True, kw_only=True)
class CodesConfig(ABC):
    """The codebook of a tokenizer, and the losses that it is trained by; its network is added."""

    image_size: int = 256
    """Side that pictures are resized to, pixels."""
    codes: int = 8192
    """Codes of the codebook (count)."""
    channels: int = 32
    """Channels of a code."""
    l1: float = 0.0
    """Weight of the mean absolute error of pixels, beside the mean squared error of weight 1."""
    codebook: float = 1.0
    """Weight of the loss that pulls codes to the encoder's outputs."""
    commitment: float = 0.25
    """Weight, relative to `codebook`, of the loss that pulls the encoder's outputs to codes."""
    perceptual: float = 0.0
    """Weight of the perceptual distance (LPIPS) of the reconstruction; ViT-VQGAN's is 0.1, VQGAN's
    is 1."""
    perceptual_weights: str = ""
    """File of VGG-16's weights for it: torchvision's, or those of the lpips package; a path."""
    adversarial: float = 0.0
    """Weight of the term that a discriminator gives (hinge loss), relative to one at which it
    pulls as hard as the reconstruction; ViT-VQGAN's is 0.1, VQGAN's is 0.75. That weight is taken
    of the rows of each part of a step (loop.grad_accum), over all workers."""
    adversarial_from: int = 0
    """Steps before the discriminator begins to learn, and to be heard."""
    discriminator_width: int = 64
    """Channels of the discriminator's first layer."""
    discriminator_depth: int = 3
    """Halvings of the resolution in the discriminator (count): larger patches are judged."""
    revive_every: int = 100
    """Steps after which codes that were never chosen move to outputs of the encoder."""
    revive_until: float = 0.7
    """Share of the run after which no code is revived, so that the decoder can settle."""

    def __post_init__(self) -> None:
        self.network()  # one place knows what makes sizes valid
        for name in (
            *("l1", "codebook", "commitment", "perceptual", "adversarial"),
            "adversarial_from",
        ):
            require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "at least 0")
        for name in ("discriminator_width", "discriminator_depth"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        require(
            bool(self.perceptual_weights) == (self.perceptual > 0),
            "model.perceptual_weights",
            self.perceptual_weights,
            "a file with model.perceptual above 0, and empty without",
        )
        depth = self.discriminator_depth if self.adversarial else None
        check_sides(self.image_size, perceptual=self.perceptual > 0, depth=depth)
        require(self.revive_every >= 1, "model.revive_every", self.revive_every, "at least 1 step")
        check_share("model.revive_until", self.revive_until)

    @abstractmethod
    def network(self) -> ViTVQGANConfig | VQGANConfig:
        """The network's own config."""

    @abstractmethod
    def build(self) -> ViTVQGAN | VQGAN:
        """The network, untrained."""


@dataclass(frozen=True, kw_only=True)
class TokenizerModelConfig(CodesConfig):
    """The ViT-VQGAN to train, and its losses."""

    encoder: TransformerConfig
    decoder: TransformerConfig
    patch: int = 8
    """Side of the square that a token stands for, pixels; it divides image_size."""
    head_width: int = 64
    """Channels of one attention head."""

    def network(self) -> ViTVQGANConfig:
        return ViTVQGANConfig(
            image_size=(self.image_size, self.image_size),
            patch=self.patch,
            encoder=self.encoder.size(),
            decoder=self.decoder.size(),
            codes=self.codes,
            channels=self.channels,
            dim_head=self.head_width,
        )

    def build(self) -> ViTVQGAN:
        return ViTVQGAN(self.network())


@dataclass(frozen=True, kw_only=True)
class VQGANModelConfig(CodesConfig):
    """The VQGAN to train, and its losses. A token is 2^(levels - 1) pixels wide."""

    codes: int = 256
    """Codes of the codebook (count)."""
    channels: int = 4
    """Channels of a code."""
    width: int = 128
    """Feature channels at full resolution, a multiple of `groups`."""
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    """Factor of the channels at each level, the full resolution first; each level halves it."""
    blocks: int = 2
    """Residual blocks of a level in the encoder (count); the decoder has one more."""
    attention: tuple[int, ...] = (3,)
    """Levels with self-attention, from 0, the full resolution."""
    groups: int = 32
    """Groups of channels that are normalised together (count); the published models have 32."""

    def network(self) -> VQGANConfig:
        return VQGANConfig(
            image_size=(self.image_size, self.image_size),
            width=self.width,
            multipliers=self.multipliers,
            blocks=self.blocks,
            attention=self.attention,
            codes=self.codes,
            channels=self.channels,
            latent=self.channels,
            groups=self.groups,
        )

    def build(self) -> VQGAN:
        return VQGAN(self.network())


@dataclass(frozen=True)
class CodesRun(ViewRun):
    """Training a tokenizer: pictures to grids of codes and back."""

    model: CodesConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.loop.compile and self.model.adversarial),
            "loop.compile",
            self.loop.compile,
            "off with model.adversarial, whose weight needs gradients on their way back",
        )


@dataclass(frozen=True)
class TokenizerRun(CodesRun):
    """Training a ViT-VQGAN tokenizer: pictures to grids of codes and back."""

    model: TokenizerModelConfig


@dataclass(frozen=True)
class VQGANRun(CodesRun):
    """Training a VQGAN tokenizer: pictures to grids of codes and back."""

    model: VQGANModelConfig
