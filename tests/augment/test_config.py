"""Configs refuse what makes no sense, and say why."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from services.augment.config import (
    AdaptConfig,
    ColorConfig,
    CropConfig,
    EdaConfig,
    MixConfig,
    RecipeConfig,
    check_crop,
)
from services.errors import InvalidInputError


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: EdaConfig(synonym_probability=1.5), "synonym_probability=1.5"),
        (lambda: EdaConfig(synonym_probability=0.6, swap_probability=0.6), "add up to 1.2"),
        (lambda: EdaConfig(swap_scale=0.5), "swap_scale=0.5"),
        (lambda: EdaConfig(synonym_count=0), "synonym_count=0"),
        (lambda: ColorConfig(noise_probability=math.nan), "noise_probability=nan"),
        (lambda: ColorConfig(noise_probability=0.9, coloradapt_probability=0.2), "add up to 1.1"),
        (lambda: CropConfig(kind="rrc"), "'rrc' is not one of resized, random, centre"),
        (lambda: CropConfig(area=(0.0, 1.0)), "area"),
        (lambda: CropConfig(aspect=(2.0, 1.0)), "aspect"),
        (lambda: MixConfig(mixup_alpha=-1.0), "mixup_alpha=-1"),
        (lambda: AdaptConfig(share=2.0), "share=2"),
        (lambda: AdaptConfig(precision="float16"), "'float16' is not one of"),
        (lambda: AdaptConfig(shear_degrees=90.0), "shear_degrees=90"),
        (lambda: RecipeConfig("mine", (4, 4), output="pixels"), "'pixels' is not one of"),
        (lambda: check_crop((8, 8), (9, 4)), "does not fit into the stored grid"),
        (lambda: check_crop((8, 8), (0, 4)), "at least 1x1"),
    ],
)
def test_bad_values_are_named(build: Callable[[], object], named: str) -> None:
    with pytest.raises(InvalidInputError, match=named.replace("(", r"\(")):
        build()


def test_activity() -> None:
    assert not EdaConfig().active
    assert EdaConfig(swap_probability=0.1).active
    assert not ColorConfig(noise_probability=0.5, share=0).active
    assert not MixConfig(cutmix_alpha=1.0, probability=0).active
    assert not AdaptConfig(flip_probability=0, affine_each=0).warps
    assert AdaptConfig(flip_probability=0).warps


def test_labels_are_needed_where_rows_are_mixed() -> None:
    mix = MixConfig(cutmix_alpha=1.0)
    assert not RecipeConfig("none", (4, 4)).needs_labels
    assert RecipeConfig("plain", (4, 4), plain_mix=mix).needs_labels
    assert not RecipeConfig("off", (4, 4), adapt=AdaptConfig(share=0, mix=mix)).needs_labels
    assert RecipeConfig("adapt", (4, 4), adapt=AdaptConfig(share=0.5, mix=mix)).needs_labels
