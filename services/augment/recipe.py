"""Named recipes with the published values, and a readable list of what a recipe does.

    config = mtm(spec, crop=(28, 28))
    augment = Augmenter(config, spec, codebook, tokenadapt)
    batch = augment(ids, labels, draws, blocks=4)

Every value can be changed with `dataclasses.replace`, or given to `RecipeConfig` anew; a
probability, share or alpha of 0 switches its operation off.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from services.augment.augmenter import Augmenter, Batch
from services.augment.config import (
    AdaptConfig,
    ColorConfig,
    CropConfig,
    EdaConfig,
    MixConfig,
    RecipeConfig,
    check_crop,
)
from services.errors import FormatError, InvalidInputError, NotFoundError
from services.wire.seit import v1 as wire

__all__ = [
    "RECIPES",
    "Augmenter",
    "Batch",
    "RecipeConfig",
    "describe",
    "eval",
    "finetune",
    "mtm",
    "read_recipe",
    "recipe_named",
    "scratch",
    "segment",
]

Recipe = Callable[[wire.TokenSpec, tuple[int, int]], RecipeConfig]

_MTM_AREA = (0.2, 1.0)
_CUTMIX = MixConfig(cutmix_alpha=1.0)
_MIXUP_CUTMIX = MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0)  # DeiT's values


def mtm(spec: wire.TokenSpec, crop: tuple[int, int]) -> RecipeConfig:
    """Masked token modelling (0.C.0.1): geometry alone, half of the rows through TokenAdapt."""
    area = CropConfig(area=_MTM_AREA)
    return _fitting(
        spec,
        RecipeConfig(
            name="mtm", crop=crop, plain_crop=area, adapt=AdaptConfig(share=0.5, crop=area)
        ),
    )


def finetune(spec: wire.TokenSpec, crop: tuple[int, int]) -> RecipeConfig:
    """Fine-tuning from MTM: ids, colour noise, Mixup and CutMix. Token-EDA is off, as published."""
    return _fitting(
        spec,
        RecipeConfig(
            name="finetune",
            crop=crop,
            color=ColorConfig(noise_probability=0.75, coloradapt_probability=0.25),
            plain_mix=_CUTMIX,
            adapt=AdaptConfig(share=0.5, mix=_MIXUP_CUTMIX),
        ),
    )


def scratch(spec: wire.TokenSpec, crop: tuple[int, int]) -> RecipeConfig:
    """Classification from scratch (0.C.0.2): embeddings, Token-EDA, colour, Mixup and CutMix."""
    return _fitting(
        spec,
        RecipeConfig(
            name="scratch",
            crop=crop,
            output="embeddings",
            eda=EdaConfig(synonym_probability=0.25, swap_probability=0.25),
            color=ColorConfig(noise_probability=0.5, coloradapt_probability=0.25),
            plain_mix=_CUTMIX,
            adapt=AdaptConfig(share=0.5, mix=_MIXUP_CUTMIX),
        ),
    )


def segment(spec: wire.TokenSpec, crop: tuple[int, int]) -> RecipeConfig:
    """Segmentation (0.C.0.3): geometry through TokenAdapt alone, no mixing, no RRC of tokens."""
    return _fitting(
        spec,
        RecipeConfig(
            name="segment",
            crop=crop,
            plain_crop=CropConfig(kind="random"),
            adapt=AdaptConfig(share=0.5),
        ),
    )


def eval(spec: wire.TokenSpec, crop: tuple[int, int]) -> RecipeConfig:
    """Evaluation: the centre of the grid, and no draw is used."""
    return _fitting(
        spec, RecipeConfig(name="eval", crop=crop, plain_crop=CropConfig(kind="centre"))
    )


RECIPES: dict[str, Recipe] = {
    "mtm": mtm,
    "finetune": finetune,
    "scratch": scratch,
    "segment": segment,
    "eval": eval,
}


_RECIPE = TypeAdapter(RecipeConfig)


def recipe_named(name: str, spec: wire.TokenSpec, crop: tuple[int, int]) -> RecipeConfig:
    """A recipe of `RECIPES` by its name, or one of the user's own by the path of its JSON file.

    The file holds what differs from `RecipeConfig`'s defaults, in its words:
    {"name": "mine", "adapt": {"share": 0.5, "crop": {"area": [0.3, 1]}}}; its crop is `crop`
    unless it names one.

    Raises: NotFoundError, FormatError for a file that is none, or has a value out of its range;
    InvalidInputError for another name, or a crop that does not fit the dataset's grid.
    """
    if name in RECIPES:
        return RECIPES[name](spec, crop)
    if not name.endswith(".json"):
        raise InvalidInputError(
            f"recipe is {name!r}, expected one of {', '.join(RECIPES)}, or a .json file"
        )
    return _fitting(spec, read_recipe(Path(name), crop))


def read_recipe(path: Path, crop: tuple[int, int]) -> RecipeConfig:
    """The recipe of a JSON file (see `recipe_named`); every field is checked, none is ignored."""
    try:
        given = json.loads(path.read_text())
        if not isinstance(given, dict):
            raise ValueError(f"it holds a {type(given).__name__}, not an object")
        _known(RecipeConfig, given, "")
        return _RECIPE.validate_python({"name": path.stem, "crop": crop, **given})
    except FileNotFoundError as error:
        raise NotFoundError(f"no recipe file {path}: no recipe was built; check it") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        why = f"{place}: {first['msg']}" if place else first["msg"]
        raise FormatError(
            f"recipe file {path} is not valid, no recipe was built: {why}; correct it"
        ) from error
    except (OSError, ValueError) as error:
        raise FormatError(
            f"recipe file {path} is not valid, no recipe was built: {error}; correct it"
        ) from error


def _known(kind: type[Any], given: dict[str, Any], place: str) -> None:
    """Refuse fields that the config does not have: a misspelt one would silently do nothing."""
    names = {field.name: field for field in fields(kind)}
    for name, value in given.items():
        if name not in names:
            raise ValueError(f"{place}{name} is not one of {', '.join(names)}")
        default = names[name].default_factory
        if isinstance(value, dict) and isinstance(default, type):
            _known(default, value, f"{place}{name}.")


def describe(config: RecipeConfig) -> list[str]:
    """What a recipe does, one operation a line, in the order of application."""
    eda, color, adapt = config.eda, config.color, config.adapt
    h, w = config.crop
    lines = [f"recipe {config.name}: {h}x{w} {config.output}"]
    if eda.synonym_probability > 0:
        lines.append(
            f"synonyms, p={eda.synonym_probability:g} a row: {eda.synonym_rate:.0%} of its tokens "
            f"become one of their {eda.synonym_count} nearest codes"
        )
    if eda.swap_probability > 0:
        lines.append(
            f"swap, p={eda.swap_probability:g} a row: two windows of up to {eda.swap_scale:.0%} "
            "of the side"
        )
    if color.share > 0 and color.noise_probability > 0:
        lines.append(
            f"Emb-Noise, p={color.noise_probability:g} a block, on {color.share:.0%} of its rows: "
            f"{color.noise_scale:g} a channel, {color.noise_std:g} an element, "
            "times the codes' spread"
        )
    if color.share > 0 and color.coloradapt_probability > 0:
        lines.append(
            f"ColorAdapt, p={color.coloradapt_probability:g} a block, on {color.share:.0%} of its "
            "rows"
        )
    if adapt.share < 1:
        lines.append(f"plain rows ({1 - adapt.share:.0%} of a block)")
        lines.append(f"  {_describe_crop(config.plain_crop)}")
        lines += _describe_mix(config.plain_mix)
    if adapt.share > 0:
        lines.append(f"TokenAdapt rows ({adapt.share:.0%} of a block), {adapt.precision}")
        lines += _describe_turns(adapt)
        lines.append(f"  {_describe_crop(adapt.crop)}")
        lines += _describe_mix(adapt.mix)
    return lines


def _describe_turns(adapt: AdaptConfig) -> list[str]:
    lines = []
    if adapt.flip_probability > 0:
        lines.append(f"  horizontal flip, p={adapt.flip_probability:g}")
    if adapt.affine_probability > 0 and adapt.affine_each > 0:
        lines.append(
            f"  affine, p={adapt.affine_probability:g}: rotate {adapt.rotate_degrees:g} degrees, "
            f"translate {adapt.translate:.0%} and shear {adapt.shear_degrees:g} degrees along each "
            f"axis, each p={adapt.affine_each:g}"
        )
    return lines


def _describe_crop(crop: CropConfig) -> str:
    if crop.kind == "resized":
        (low, high), (narrow, wide) = crop.area, crop.aspect
        aspect = f"aspect {narrow:.2f} to {wide:.2f}"
        return f"resized crop, area {low:.0%} to {high:.0%}, {aspect}, bicubic"
    return f"{crop.kind} crop"


def _describe_mix(mix: MixConfig) -> list[str]:
    if not mix.active:
        return []
    kinds = [
        f"{name} {alpha:g}"
        for name, alpha in (("Mixup", mix.mixup_alpha), ("CutMix", mix.cutmix_alpha))
        if alpha > 0
    ]
    switch = f", CutMix p={mix.switch:g}" if len(kinds) > 1 else ""
    return [f"  {' or '.join(kinds)}, p={mix.probability:g}{switch}"]


def _fitting(spec: wire.TokenSpec, config: RecipeConfig) -> RecipeConfig:
    check_crop((spec.grid_height, spec.grid_width), config.crop)
    return config
