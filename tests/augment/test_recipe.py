"""Named recipes carry the published values and can be read by people."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.augment.config import AdaptConfig
from services.augment.recipe import RECIPES, describe, finetune, mtm, scratch, segment
from services.augment.recipe import eval as evaluation
from services.errors import InvalidInputError
from services.wire.seit import v1 as wire


def test_published_values(spec: wire.TokenSpec, crop: tuple[int, int]) -> None:
    pretrain = mtm(spec, crop)
    assert pretrain.plain_crop.area == pretrain.adapt.crop.area == (0.2, 1.0)
    assert not pretrain.color.active
    assert not pretrain.eda.active
    assert not pretrain.needs_labels
    tuned = finetune(spec, crop)
    assert tuned.output == "ids"
    assert (tuned.color.noise_probability, tuned.color.coloradapt_probability) == (0.75, 0.25)
    assert (tuned.adapt.mix.mixup_alpha, tuned.adapt.mix.cutmix_alpha) == (0.8, 1.0)
    assert (tuned.plain_mix.mixup_alpha, tuned.plain_mix.cutmix_alpha) == (0.0, 1.0)
    classify = scratch(spec, crop)
    assert classify.output == "embeddings"
    assert (classify.color.noise_probability, classify.color.coloradapt_probability) == (0.5, 0.25)
    assert (classify.eda.synonym_probability, classify.eda.swap_probability) == (0.25, 0.25)
    assert classify.plain_crop.area == (0.08, 1.0)
    assert classify.needs_labels
    pixels = segment(spec, crop)
    assert not pixels.needs_labels
    assert pixels.plain_crop.kind == "random"
    assert {config.adapt.share for config in (pretrain, tuned, classify, pixels)} == {0.5}
    assert evaluation(spec, crop).adapt.share == 0


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_fits_its_grid_and_is_named(
    name: str, spec: wire.TokenSpec, crop: tuple[int, int]
) -> None:
    assert RECIPES[name](spec, crop).name == name
    with pytest.raises(InvalidInputError, match="does not fit"):
        RECIPES[name](spec, (spec.grid_height + 1, 1))


def test_description(spec: wire.TokenSpec, crop: tuple[int, int]) -> None:
    assert describe(evaluation(spec, crop)) == [
        "recipe eval: 6x7 ids",
        "plain rows (100% of a block)",
        "  centre crop",
    ]
    assert describe(finetune(spec, crop)) == [
        "recipe finetune: 6x7 ids",
        "Emb-Noise, p=0.75 a block, on 50% of its rows: 1 a channel, 1 an element, "
        "times the codes' spread",
        "ColorAdapt, p=0.25 a block, on 50% of its rows",
        "plain rows (50% of a block)",
        "  resized crop, area 8% to 100%, aspect 0.75 to 1.33, bicubic",
        "  CutMix 1, p=1",
        "TokenAdapt rows (50% of a block), float32",
        "  horizontal flip, p=0.5",
        "  affine, p=0.5: rotate 30 degrees, translate 20% and shear 15 degrees along each axis, "
        "each p=0.5",
        "  resized crop, area 8% to 100%, aspect 0.75 to 1.33, bicubic",
        "  Mixup 0.8 or CutMix 1, p=1, CutMix p=0.5",
    ]
    lines = "\n".join(describe(scratch(spec, crop)))
    assert "synonyms, p=0.25 a row" in lines
    assert "swap, p=0.25 a row" in lines


def test_what_is_off_is_not_listed(spec: wire.TokenSpec, crop: tuple[int, int]) -> None:
    config = mtm(spec, crop)
    still = AdaptConfig(share=1.0, flip_probability=0.0, affine_probability=0.0)
    lines = "\n".join(describe(replace(config, adapt=still)))
    assert "flip" not in lines
    assert "affine" not in lines
    assert "plain" not in lines
