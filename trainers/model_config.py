"""The model of a run: its sizes, its masking, and what it starts from; see `config.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from trainers.data_config import check_rate, require
from trainers.models.sizes import ViTSize, vit_size


@dataclass(frozen=True)
class ViTConfig:
    """Size of a vision transformer."""

    size: Literal["tiny", "small", "base", "large"] = "base"
    """Width, depth and heads of ViT-Ti, S, B or L."""
    width: int | None = None
    """Channels of a token; None takes the size's."""
    depth: int | None = None
    """Blocks (count); None takes the size's."""
    heads: int | None = None
    """Attention heads (count); None takes the size's."""
    patch: int = 2
    """Side of a patch, tokens; it divides the crop."""

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"model.{name}", value, "None or at least 1")
        require(self.patch >= 1, "model.patch", self.patch, "at least 1 token")
        named = vit_size(self.size)
        dim, heads = self.width or named.dim, self.heads or named.heads
        _check_heads("model.heads", heads, "model.width", dim)

    @property
    def encoder(self) -> ViTSize:
        """Width, depth and heads, those of `size` where no others are given."""
        named = vit_size(self.size)
        return replace(
            named,
            dim=self.width or named.dim,
            depth=self.depth or named.depth,
            heads=self.heads or named.heads,
        )


@dataclass(frozen=True)
class MtmModelConfig(ViTConfig):
    """The encoder, and the decoder and masking of masked token modelling."""

    decoder_width: int = 512
    """Channels of the decoder."""
    decoder_depth: int = 4
    """Blocks of the decoder (count)."""
    decoder_heads: int = 16
    """Attention heads of the decoder (count)."""
    dropout: float = 0.1
    """Share of activations dropped after the embedding and in the decoder."""
    mask_mean: float = 0.45
    """Mean of the truncated normal that a step's masking ratio is drawn from (share of patches)."""
    mask_std: float = 0.25
    """Its standard deviation (share of patches)."""
    mask_min: float = 0.4
    """Lowest masking ratio; this share of the patches is also dropped before the encoder."""
    mask_max: float = 1.0
    """Highest masking ratio (share of patches)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("decoder_width", "decoder_depth", "decoder_heads"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        check_rate("model.dropout", self.dropout)
        _check_heads(
            *("model.decoder_heads", self.decoder_heads),
            *("model.decoder_width", self.decoder_width),
        )
        require(
            0 < self.mask_min < self.mask_max <= 1,
            "model.mask_min..mask_max",
            (self.mask_min, self.mask_max),
            "two shares in (0, 1], the lower one first",
        )
        require(self.mask_std > 0, "model.mask_std", self.mask_std, "above 0")


@dataclass(frozen=True)
class ClassifierModelConfig(ViTConfig):
    """The classifier and what it starts from. The augmentation recipe decides what it reads."""

    init: str = ""
    """Model to start from, an MTM or a classifier of other classes: folder of a finished run, its
    .safetensors file, or a published .pth; empty for none."""
    resize_positions: bool = False
    """Take a model of another grid to start from, its learned positions resized to this one."""
    drop_path: float = 0.1
    """Share of residual branches dropped in the last block; grows linearly from 0 in the first."""
    dropout: float = 0.1
    """Share of activations dropped after the embedding of ids."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate("model.drop_path", self.drop_path)
        check_rate("model.dropout", self.dropout)


def _check_heads(name: str, heads: int, width_name: str, width: int) -> None:
    require(width % 4 == 0, width_name, width, "a multiple of 4, which sin-cos positions take")
    require(
        width % heads == 0, name, heads, f"a divisor of {width_name}, {width}: heads share it out"
    )
