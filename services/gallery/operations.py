"""A recipe taken apart: each of its operations alone, on every row, as strong as in the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from services.augment.config import (
    AdaptConfig,
    ColorConfig,
    CropConfig,
    EdaConfig,
    MixConfig,
    RecipeConfig,
)

_CENTRE = CropConfig(kind="centre")


def operations(config: RecipeConfig, grid: tuple[int, int]) -> Iterator[tuple[str, RecipeConfig]]:
    """(title, recipe of that operation alone) in the order of application; those that are on.

    grid: (height, width) of the stored tokens. Operations that keep the size act on all of it;
    crops, mixes and TokenAdapt give the recipe's crop. All give ids: what happens in the
    embedding space shows as the nearest codes.
    """
    whole = RecipeConfig("alone", grid, plain_crop=_CENTRE)
    yield from ((name, replace(whole, eda=eda)) for name, eda in _edits(config.eda))
    yield from ((name, replace(whole, color=color)) for name, color in _colours(config.color))
    if config.adapt.share < 1:
        cut = replace(whole, crop=config.crop)
        if config.plain_crop.kind != "centre" or config.crop != grid:
            yield (
                f"{_crop(config.plain_crop)}\non codes",
                replace(cut, plain_crop=config.plain_crop),
            )
        for name, mix in _mixes(config.plain_mix):
            yield f"{name}\non codes", replace(cut, plain_mix=mix)
    if config.adapt.share > 0:
        for name, adapt in _adapted(config.adapt):
            yield name, replace(whole, crop=config.crop, adapt=adapt)


def _edits(eda: EdaConfig) -> Iterator[tuple[str, EdaConfig]]:
    if eda.synonym_probability > 0:
        yield "synonyms", replace(eda, synonym_probability=1.0, swap_probability=0.0)
    if eda.swap_probability > 0:
        yield "swap", replace(eda, synonym_probability=0.0, swap_probability=1.0)


def _colours(color: ColorConfig) -> Iterator[tuple[str, ColorConfig]]:
    every = replace(color, share=1.0, noise_probability=0.0, coloradapt_probability=0.0)
    if color.share > 0 and color.noise_probability > 0:
        yield "Emb-Noise", replace(every, noise_probability=1.0)
    if color.share > 0 and color.coloradapt_probability > 0:
        yield "ColorAdapt", replace(every, coloradapt_probability=1.0)


def _mixes(mix: MixConfig) -> Iterator[tuple[str, MixConfig]]:
    every = replace(mix, probability=1.0, mixup_alpha=0.0, cutmix_alpha=0.0)
    if mix.probability > 0 and mix.mixup_alpha > 0:
        yield "Mixup", replace(every, mixup_alpha=mix.mixup_alpha)
    if mix.probability > 0 and mix.cutmix_alpha > 0:
        yield "CutMix", replace(every, cutmix_alpha=mix.cutmix_alpha)


def _adapted(adapt: AdaptConfig) -> Iterator[tuple[str, AdaptConfig]]:
    still = replace(
        adapt,
        share=1.0,
        flip_probability=0.0,
        affine_probability=0.0,
        crop=_CENTRE,
        mix=MixConfig(),
    )
    yield "TokenAdapt\nf, g alone", still
    if adapt.flip_probability > 0:
        yield "TokenAdapt\nflip", replace(still, flip_probability=1.0)
    if adapt.affine_probability > 0 and adapt.affine_each > 0:
        turned = replace(
            still,
            affine_probability=1.0,
            affine_each=1.0,
            rotate_degrees=0.0,
            translate=0.0,
            shear_degrees=0.0,
        )
        if adapt.rotate_degrees > 0:
            yield "TokenAdapt\nrotate", replace(turned, rotate_degrees=adapt.rotate_degrees)
        if adapt.translate > 0:
            yield "TokenAdapt\ntranslate", replace(turned, translate=adapt.translate)
        if adapt.shear_degrees > 0:
            yield "TokenAdapt\nshear", replace(turned, shear_degrees=adapt.shear_degrees)
    if adapt.crop.kind != "centre":
        yield f"TokenAdapt\n{_crop(adapt.crop)}", replace(still, crop=adapt.crop)
    for name, mix in _mixes(adapt.mix):
        yield f"TokenAdapt\n{name}", replace(still, mix=mix)


def _crop(crop: CropConfig) -> str:
    return "RRC" if crop.kind == "resized" else f"{crop.kind} crop"
