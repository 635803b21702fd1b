"""What a recipe does, as small frozen dataclasses that refuse values that make no sense.

Defaults are the published ones. A probability of 0 switches its operation off. No torch in here:
a recipe travels to processes that only fetch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from services.errors import InvalidInputError

MAX_SWAP_SCALE = 1 / 3
"""Largest window side, as a share of the grid's: up to it a second window always finds room."""

CropKind = Literal["resized", "random", "centre"]
Output = Literal["ids", "embeddings"]
Precision = Literal["float32", "bfloat16"]

_MAX_ALPHA = 100.0


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise InvalidInputError(
            f"{name}={value} is outside of {low:g}..{high:g}: the recipe was not built"
        )


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidInputError(f"{name}={value!r} is not one of {', '.join(allowed)}")


def _sum(names: str, total: float) -> None:
    if total > 1 + 1e-9:
        raise InvalidInputError(
            f"{names} add up to {total:g}, more than 1, but a row gets at most one of them: "
            "lower one of the two"
        )


@dataclass(frozen=True)
class EdaConfig:
    """Token-EDA: for each row one of synonyms, a swap of two windows, or nothing.

    synonym_rate: share of a chosen row's tokens that are replaced. synonym_count: nearest codes
    to choose from. swap_scale: largest window side as a share of the grid's shorter side.
    """

    synonym_probability: float = 0.0
    synonym_rate: float = 0.25
    synonym_count: int = 5
    swap_probability: float = 0.0
    swap_scale: float = 0.25

    @property
    def active(self) -> bool:
        """Whether it ever changes a row."""
        return self.synonym_probability + self.swap_probability > 0

    def __post_init__(self) -> None:
        _within("synonym_probability", self.synonym_probability, 0, 1)
        _within("synonym_rate", self.synonym_rate, 0, 1)
        _within("synonym_count", self.synonym_count, 1, 1000)
        _within("swap_probability", self.swap_probability, 0, 1)
        _within("swap_scale", self.swap_scale, 0, MAX_SWAP_SCALE)
        _sum(
            "synonym_probability and swap_probability",
            self.synonym_probability + self.swap_probability,
        )


@dataclass(frozen=True)
class ColorConfig:
    """For each block one of Emb-Noise, ColorAdapt, or nothing, on `share` of the block's rows.

    noise_scale, noise_std: spread of the noise that a channel shares, and of each element's own,
    in units of the codebook's own spread (the root mean square of its numbers).
    """

    noise_probability: float = 0.0
    coloradapt_probability: float = 0.0
    share: float = 0.5
    noise_scale: float = 1.0
    noise_std: float = 1.0

    def __post_init__(self) -> None:
        _within("noise_probability", self.noise_probability, 0, 1)
        _within("coloradapt_probability", self.coloradapt_probability, 0, 1)
        _within("color share", self.share, 0, 1)
        _within("noise_scale", self.noise_scale, 0, 1000)
        _within("noise_std", self.noise_std, 0, 1000)
        _sum(
            "noise_probability and coloradapt_probability",
            self.noise_probability + self.coloradapt_probability,
        )

    @property
    def active(self) -> bool:
        """Whether it ever changes a row."""
        return self.share > 0 and self.noise_probability + self.coloradapt_probability > 0


@dataclass(frozen=True)
class CropConfig:
    """How the training grid is cut: "resized" (RRC, bicubic), "random" or "centre".

    area: share of the grid's area, and aspect: width / height, of a resized crop's box.
    """

    kind: CropKind = "resized"
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        _choice("crop kind", self.kind, ("resized", "random", "centre"))
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise InvalidInputError(
                f"crop area={self.area} must be (low, high) with 0 < low <= high <= 1"
            )
        if not 0 < self.aspect[0] <= self.aspect[1] < math.inf:
            raise InvalidInputError(
                f"crop aspect={self.aspect} must be (low, high) with 0 < low <= high"
            )


@dataclass(frozen=True)
class MixConfig:
    """Mixup and CutMix of a row with its mirror image in the block.

    mixup_alpha, cutmix_alpha: of Beta(alpha, alpha); 0 switches one off. probability: share of
    rows that are mixed at all. switch: share of CutMix where both are on.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    probability: float = 1.0
    switch: float = 0.5

    def __post_init__(self) -> None:
        _within("mixup_alpha", self.mixup_alpha, 0, _MAX_ALPHA)
        _within("cutmix_alpha", self.cutmix_alpha, 0, _MAX_ALPHA)
        _within("mix probability", self.probability, 0, 1)
        _within("mix switch", self.switch, 0, 1)

    @property
    def active(self) -> bool:
        """Whether it ever mixes two rows, so that labels are needed."""
        return self.probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


@dataclass(frozen=True)
class AdaptConfig:
    """The TokenAdapt path, which `share` of each block's rows takes.

    flip_probability: mirror left and right. affine_probability: whether a row is turned at all;
    then rotation (degrees, both ways), translation (shares of the side) and shear (degrees) along
    each axis are applied with `affine_each` each.
    precision: of the two networks; "bfloat16" pays on GPUs and on processors with AMX, and gives
    another id here and there. compiled: by torch.compile, which takes its time at the start and
    pays on GPUs.
    """

    share: float = 0.0
    flip_probability: float = 0.5
    affine_probability: float = 0.5
    affine_each: float = 0.5
    rotate_degrees: float = 30.0
    translate: float = 0.2
    shear_degrees: float = 15.0
    crop: CropConfig = field(default_factory=CropConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    precision: Precision = "float32"
    compiled: bool = False

    def __post_init__(self) -> None:
        _within("TokenAdapt share", self.share, 0, 1)
        _within("flip_probability", self.flip_probability, 0, 1)
        _within("affine_probability", self.affine_probability, 0, 1)
        _within("affine_each", self.affine_each, 0, 1)
        _within("rotate_degrees", self.rotate_degrees, 0, 180)
        _within("translate", self.translate, 0, 1)
        _within("shear_degrees", self.shear_degrees, 0, 60)
        _choice("precision", self.precision, ("float32", "bfloat16"))

    @property
    def warps(self) -> bool:
        """Whether any row is ever flipped or turned."""
        return self.flip_probability > 0 or self.affine_probability * self.affine_each > 0


@dataclass(frozen=True)
class RecipeConfig:
    """A whole recipe. Rows outside of the TokenAdapt path take `plain_crop` and `plain_mix`.

    crop: (height, width) of the training grid in tokens. output: what the model reads.
    """

    name: str
    crop: tuple[int, int]
    output: Output = "ids"
    eda: EdaConfig = field(default_factory=EdaConfig)
    color: ColorConfig = field(default_factory=ColorConfig)
    plain_crop: CropConfig = field(default_factory=CropConfig)
    plain_mix: MixConfig = field(default_factory=MixConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)

    def __post_init__(self) -> None:
        _choice("output", self.output, ("ids", "embeddings"))

    @property
    def only_cuts(self) -> bool:
        """Whether all that it does is to cut ids, which needs neither codebook nor networks."""
        edits = self.eda.active or self.color.active or self.plain_mix.active
        return (
            self.output == "ids"
            and self.plain_crop.kind != "resized"
            and self.adapt.share == 0
            and not edits
        )

    @property
    def needs_labels(self) -> bool:
        """Whether it mixes rows, which gives soft targets: impossible on an unlabelled set."""
        plain = self.plain_mix.active and self.adapt.share < 1
        return plain or (self.adapt.mix.active and self.adapt.share > 0)


def check_crop(grid: tuple[int, int], crop: tuple[int, int]) -> None:
    """Refuse a training grid that does not fit into the stored one."""
    if min(crop) < 1 or crop[0] > grid[0] or crop[1] > grid[1]:
        raise InvalidInputError(
            f"crop={crop} does not fit into the stored grid {grid}: choose a crop of at least 1x1 "
            "tokens inside of it"
        )


def check_geometric(config: RecipeConfig) -> None:
    """Refuse, for rows with masks, what moves or mixes tokens where a mask could not follow."""
    moves = [
        name
        for name, active in (
            ("plain_mix.probability", config.plain_mix.active),
            ("adapt.mix.probability", config.adapt.mix.active),
            ("eda.swap_probability", config.eda.swap_probability > 0),
        )
        if active
    ]
    if moves:
        raise InvalidInputError(
            f"recipe {config.name!r} mixes rows or swaps windows, whose masks would no longer fit: "
            f"set {', '.join(moves)} to 0, or use the recipe `segment`"
        )


def check_coefficients(config: RecipeConfig) -> None:
    """Refuse, for rows of coefficients, what asks for codes: they have none."""
    if config.output != "embeddings" or config.eda.synonym_probability > 0:
        raise InvalidInputError(
            f"recipe {config.name!r} gives {config.output} with synonyms at probability"
            f" {config.eda.synonym_probability:g}; DCT coefficients are no codes: valid are"
            " embeddings (the recipe `scratch`) without synonyms"
        )
