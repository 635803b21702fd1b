"""Runs that learn from pictures: what all of them have, TokenAdapt's, the pixel classifier's."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from services.augment.config import AdaptConfig, CropConfig, MixConfig
from services.plan.draws import check_seed
from services.tokens.vitvqgan import ViTSize
from trainers.config import Run, ViTConfig
from trainers.data_config import check_rate, check_share, require


@dataclass(frozen=True)
class PicturesConfig:
    """Which pictures to learn from. Only those of the training split teach."""

    images: str = "images"
    """Folder of class/picture files, or of train/ and val/ with such folders, or Flowers-102,
    Stanford Cars or iNaturalist as they ship."""
    validation_fraction: float = 0.2
    """Share of the pictures set apart for validation, where the folder has no split of its own."""
    seed: int = 0
    """Seed of that split; `seit ingest` with the same seed and share makes the same split."""
    keys: str = ""
    """File that names the training pictures to learn from, one a line, as paths below the folder;
    the number of steps stays that of all. Empty takes all."""

    def __post_init__(self) -> None:
        require(bool(self.images), "pictures.images", self.images, "a folder")
        require(
            0 <= self.validation_fraction < 1,
            "pictures.validation_fraction",
            self.validation_fraction,
            "a share from 0 to below 1",
        )
        check_seed("pictures.seed", self.seed)


@dataclass(frozen=True)
class ViewConfig:
    """How a picture is moved about: the operations of the TokenAdapt path of recipes."""

    flip_probability: float = 0.5
    """Share of the pictures that are mirrored left and right."""
    affine_probability: float = 0.5
    """Share of the pictures that are rotated, moved or sheared at all."""
    affine_each: float = 0.5
    """Share of these that get each of the five: rotation, two translations, two shears."""
    rotate_degrees: float = 30.0
    """Largest rotation, degrees, both ways."""
    translate: float = 0.2
    """Largest translation, as a share of the side, along each axis."""
    shear_degrees: float = 15.0
    """Largest shear, degrees, along each axis."""
    crop_probability: float = 1.0
    """Share of the pictures that are cropped and resized."""
    crop_area: float = 0.08
    """Smallest area of a crop, as a share of the picture's."""
    mixup_probability: float = 0.0
    """Share of the pictures that are blended with another one."""
    mixup_alpha: float = 0.8
    """Alpha of the Beta distribution that a blend's weight is drawn from."""

    def __post_init__(self) -> None:
        check_share("views.crop_probability", self.crop_probability)
        require(self.mixup_alpha > 0, "views.mixup_alpha", self.mixup_alpha, "above 0")
        self.adapt()  # one place knows what makes the others valid

    def adapt(self) -> AdaptConfig:
        """The same as recipes describe it."""
        return AdaptConfig(
            share=1.0,
            flip_probability=self.flip_probability,
            affine_probability=self.affine_probability,
            affine_each=self.affine_each,
            rotate_degrees=self.rotate_degrees,
            translate=self.translate,
            shear_degrees=self.shear_degrees,
            crop=CropConfig(area=(self.crop_area, 1.0)),
            mix=MixConfig(mixup_alpha=self.mixup_alpha, probability=self.mixup_probability),
        )


@dataclass(frozen=True)
class TransformerConfig:
    """Size of one transformer."""

    width: int
    """Channels of a token, a multiple of 4."""
    depth: int
    """Blocks (count)."""
    heads: int
    """Attention heads (count)."""
    hidden: int
    """Channels inside the MLP of a block."""

    def __post_init__(self) -> None:
        self.size()

    def size(self) -> ViTSize:
        """The size as the networks read it."""
        return ViTSize(self.width, self.depth, self.heads, self.hidden)


@dataclass(frozen=True)
class TokenAdaptModelConfig:
    """The two networks f and g; both have the same size."""

    size: TransformerConfig
    head_width: int = 64
    """Channels of one attention head."""
    scale: int = 2
    """Cells along each side of a token in the space between f and g."""
    crop: int | None = None
    """Side of the grid that g scores, tokens: the training crop; None for the tokenizer's grid."""

    def __post_init__(self) -> None:
        for name in ("head_width", "scale", "crop"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"model.{name}", value, "at least 1")


@dataclass(frozen=True)
class PictureRun(Run):
    """A run on pictures."""

    pictures: PicturesConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in fields(self.cluster):
            value = getattr(self.cluster, field.name)
            streams = ("fetch_tasks", "head_start", "share_lag")
            if field.name.startswith("augment_") or field.name in streams:
                name = f"cluster.{field.name}"
                valid = f"{field.default} here: pictures have no stream of tokens"
                require(value == field.default, name, value, valid)
        order, accumulate = self.order, self.loop.grad_accum
        whole = order.global_batch // order.block
        shares = {share for world in self.worlds for share in (whole // world, -(-whole // world))}
        blocks = sorted(shares)
        require(
            not self.mixes or all(count % accumulate == 0 for count in blocks),
            "loop.grad_accum",
            accumulate,
            f"a divisor of the {', '.join(map(str, blocks))} blocks that a worker has of a step"
            " (order.global_batch / order.block / cluster.workers): pictures are mixed with others"
            " of their block, and parts of blocks would pair others; or mix none",
        )

    @property
    def mixes(self) -> bool:
        """Whether pictures are ever mixed with others of their block."""
        return False

    def identity(self) -> dict[str, Any]:
        """As `Run`; without `keys` as earlier programs noted it, which knew no subsets."""
        parts = super().identity()
        if not self.pictures.keys:
            del parts["pictures"]["keys"]
        return parts


@dataclass(frozen=True)
class ViewRun(PictureRun):
    """A run on pictures that are moved about, and have no labels."""

    views: ViewConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, only in (("smoothing", 0.0), ("layer_decay", 1.0)):
            value = getattr(self.optim, name)
            require(value == only, f"optim.{name}", value, f"{only:g} here, it has no effect")
        valid = "ddp here: these networks are small, and change between the optimizer's steps"
        require(self.cluster.parallel == "ddp", "cluster.parallel", self.cluster.parallel, valid)

    @property
    def mixes(self) -> bool:
        return self.views.mixup_probability > 0


@dataclass(frozen=True)
class TokenAdaptRun(ViewRun):
    """Training TokenAdapt's f and g on pairs (tokens of x, tokens of A(x))."""

    tokenizer: str
    """The tokenizer (.safetensors) whose tokens to adapt: a path or URL."""
    model: TokenAdaptModelConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.tokenizer), "tokenizer", self.tokenizer, "the file of trainers/tokenizer.py"
        )


@dataclass(frozen=True)
class PixelAugmentConfig:
    """Ordinary augmentation of pictures: mirror, crop and resize, then CutMix or Mixup."""

    flip_probability: float = 0.5
    """Share of the pictures that are mirrored left and right."""
    crop_area: float = 0.08
    """Smallest area of a crop, as a share of the picture's; 1 takes the whole picture."""
    mix_probability: float = 1.0
    """Share of the pictures that are mixed with another one of their block."""
    mixup_alpha: float = 0.8
    """Alpha of the Beta distribution of Mixup's weight; 0 does without Mixup."""
    cutmix_alpha: float = 1.0
    """Alpha of the Beta distribution of CutMix's kept share; 0 does without CutMix."""

    def __post_init__(self) -> None:
        check_share("augment.flip_probability", self.flip_probability)
        self.crop()
        self.mix()

    def crop(self) -> CropConfig:
        """The crop as recipes of tokens describe theirs."""
        return CropConfig(area=(self.crop_area, 1.0))

    def mix(self) -> MixConfig:
        """The mixing, likewise."""
        return MixConfig(self.mixup_alpha, self.cutmix_alpha, self.mix_probability)


@dataclass(frozen=True)
class PixelModelConfig(ViTConfig):
    """The vision transformer of the token classifiers, on pixels."""

    patch: int = 16
    """Side of a patch, pixels; it divides `crop`."""
    image_size: int = 256
    """Side that pictures are resized to, pixels."""
    crop: int = 224
    """Side of the crop that the model reads, pixels; validation takes the centre."""
    drop_path: float = 0.1
    """Share of residual branches dropped in the last block; grows linearly from 0 in the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate("model.drop_path", self.drop_path)
        valid = f"from model.patch to model.image_size, {self.image_size}"
        require(self.patch <= self.crop <= self.image_size, "model.crop", self.crop, valid)
        valid = f"a divisor of model.crop, {self.crop} pixels"
        require(self.crop % self.patch == 0, "model.patch", self.patch, valid)


@dataclass(frozen=True)
class PixelRun(PictureRun):
    """Training a classifier on pixels: what token classifiers are compared with."""

    augment: PixelAugmentConfig
    model: PixelModelConfig

    @property
    def mixes(self) -> bool:
        return self.augment.mix().active
