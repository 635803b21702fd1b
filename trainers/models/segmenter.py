"""A vision transformer with UperNet that gives each pixel a class (paper, 4.3; mmsegmentation).

The encoder is a `TokenClassifier` without its head, on a larger grid. Maps of four of its depths
go through a neck that gives them four resolutions (mmsegmentation's MultiLevelNeck), then through
UperNet's decoder (Xiao et al., ECCV 2018; segmentation-models-pytorch) to a quarter of what a
patch is away from a pixel, from where logits are enlarged bilinearly. A second, plain head on the
deepest map helps training and is not used afterwards.

Letters: N rows, H x W grid (tokens), D channels, P patches, C width of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from services.errors import InvalidInputError
from trainers.models.classifier import ClassifierConfig, TokenClassifier
from trainers.models.embed import check_rate
from trainers.models.weights import State, load_encoder

SCALES = (4.0, 2.0, 1.0, 0.5)
"""Sides of the neck's maps, relative to the encoder's patches."""


@dataclass(frozen=True)
class SegmenterConfig:
    """Sizes of a segmenter.

    encoder: the transformer; its `classes` are those of pixels. depths: block after which each of
    the four maps is taken, counted from 1, rising. decoder: channels of UperNet. auxiliary:
    channels of the plain head. dropout: share of channels dropped before both heads' last layer.
    pixels: sides (height, width) of a token in pixels.
    """

    encoder: ClassifierConfig
    depths: tuple[int, int, int, int]
    pixels: tuple[int, int]
    decoder: int = 512
    auxiliary: int = 256
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_rate("dropout", self.dropout)
        rising = all(a < b for a, b in zip(self.depths, self.depths[1:], strict=False))
        if not rising or self.depths[0] < 1 or self.depths[-1] != self.encoder.encoder.depth:
            raise InvalidInputError(
                f"maps after the blocks {self.depths} of an encoder with "
                f"{self.encoder.encoder.depth}: four, rising, up to the last are needed (blocks "
                "behind it would never learn); no model was built: take at least 4 blocks"
            )
        if min(self.decoder, self.auxiliary, *self.pixels) < 1:
            raise InvalidInputError(
                f"decoder {self.decoder}, auxiliary {self.auxiliary}, pixels {self.pixels}: all "
                "must be at least 1; no model was built"
            )
        if min(self.encoder.patches) < 2:
            raise InvalidInputError(
                f"{self.encoder.patches[0]}x{self.encoder.patches[1]} patches: the coarsest of "
                "four maps, half of that, would be empty; use a larger grid or a smaller patch"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the logits, pixels."""
        grid = self.encoder.grid
        return grid[0] * self.pixels[0], grid[1] * self.pixels[1]


class Segmentation(NamedTuple):
    """logits, auxiliary: (N, classes, h, w) at the decoder's resolution, the latter coarser.

    `enlarged` brings them to pixels.
    """

    logits: Tensor
    auxiliary: Tensor


class TokenSegmenter(nn.Module):
    """The segmenter. Everything below `encoder.` has the names of a `TokenClassifier`.

    Norms of the decoder are over a row (GroupNorm), where mmsegmentation takes statistics of the
    batch over all devices: a row's result is then the same in any batch and on any number of
    workers, and rows that do not exist touch nothing. (LayerNorm over channels alone would do that
    too, but lets all positions of a map become one: small models then learned nothing but how
    often a class occurs.)
    """

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        width, classes = config.encoder.encoder.dim, config.encoder.classes
        self.encoder = TokenClassifier(config.encoder)
        # Maps are taken before the classifier's pooling: neither its norm nor its head is used.
        setattr(self.encoder, "norm", nn.Identity())  # noqa: B010 - of another type than it has
        setattr(self.encoder, "head", nn.Identity())  # noqa: B010
        self.neck = nn.ModuleList(_Level(width, scale) for scale in SCALES)
        channels = [width] * len(SCALES)
        self.decoder = _row_norms(
            UPerNetDecoder([0, 0, *channels], len(channels) + 1, config.decoder, "batchnorm")
        )
        self.head = _head(config.decoder, classes, config.dropout)
        self.auxiliary = nn.Sequential(
            nn.Conv2d(width, config.auxiliary, 3, padding=1, bias=False),
            _row_norm(config.auxiliary),
            nn.ReLU(inplace=True),
            *_head(config.auxiliary, classes, config.dropout),
        )

    def start_from(self, state: State) -> None:
        """Take the encoder of an MTM, a classifier or a segmenter; positions are interpolated.

        Raises FormatError, naming what does not fit; the model is then as before.
        """
        own = {name.removeprefix("encoder."): v for name, v in state.items() if _encoder(name)}
        load_encoder(self.encoder, own or state)

    def forward(self, inputs: Tensor) -> Segmentation:
        """Of ids (N, H, W) int64, or embeddings (N, D, H, W) float."""
        maps = [level(one) for level, one in zip(self.neck, self._maps(inputs), strict=True)]
        decoded = self.decoder([inputs, inputs, *maps])  # the two finest maps are not looked at
        return Segmentation(self.head(decoded), self.auxiliary(maps[-1]))

    def _maps(self, inputs: Tensor) -> Sequence[Tensor]:
        """(N, C, rows, columns) after each of the depths, as patches lie."""
        x = self.encoder.embed(inputs)
        found = []
        for number, block in enumerate(self.encoder.blocks, start=1):
            x = block(x)
            if number in self.config.depths:
                patches = x[:, 1:].transpose(1, 2)
                found.append(patches.unflatten(2, self.config.encoder.patches))
        return found


def enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, classes, h, w) -> (N, classes, *size), bilinear, float32."""
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)


class _Level(nn.Module):
    """One map to its resolution: 1x1 convolution, bilinear resize, 3x3 convolution."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.lateral = nn.Conv2d(width, width, 1)
        self.smooth = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        size = [max(1, int(side * self.scale)) for side in x.shape[2:]]
        resized = F.interpolate(self.lateral(x), size, mode="bilinear", align_corners=False)
        smooth: Tensor = self.smooth(resized)
        return smooth


def _head(channels: int, classes: int, dropout: float) -> nn.Sequential:
    last = nn.Conv2d(channels, classes, 1)
    nn.init.normal_(last.weight, std=0.01)
    if last.bias is not None:
        nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Dropout2d(dropout), last)


def _row_norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups, of at least 4 channels where there are as many: a group of one would be
    nothing but its mean on a map of one cell."""
    most = max(1, min(32, channels // 4))
    return nn.GroupNorm(next(n for n in range(most, 0, -1) if channels % n == 0), channels)


def _row_norms(module: nn.Module) -> nn.Module:
    """The same module with norms over each row in place of those over the batch."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, _row_norm(child.num_features))
        else:
            _row_norms(child)
    return module


def _encoder(name: str) -> bool:
    return name.startswith("encoder.")


def even_depths(blocks: int) -> tuple[int, int, int, int]:
    """Four depths spread evenly over an encoder: 3, 6, 9, 12 of 12 blocks."""
    first, second, third = (max(1, round(blocks * part / 4)) for part in (1, 2, 3))
    return first, second, third, blocks
