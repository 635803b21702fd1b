"""A recipe taken apart: each operation alone is what it says, and nothing is left out."""

from __future__ import annotations

import pytest

from services.augment.config import AdaptConfig, RecipeConfig
from services.augment.recipe import RECIPES
from services.gallery.operations import operations
from services.wire.seit import v1 as wire

GRID, CROP = (8, 8), (6, 6)
SPEC = wire.TokenSpec(
    grid_height=8, grid_width=8, codes=16, channels=4, image_height=32, image_width=32
)


def active(config: RecipeConfig) -> set[str]:
    """Names of what a recipe may do."""
    eda, color, adapt = config.eda, config.color, config.adapt
    found = {
        "synonyms": eda.synonym_probability,
        "swap": eda.swap_probability,
        "noise": color.share * color.noise_probability,
        "coloradapt": color.share * color.coloradapt_probability,
    }
    if adapt.share < 1:
        found |= {
            "crop": config.plain_crop.kind != "centre",
            "mixup": config.plain_mix.mixup_alpha * config.plain_mix.probability,
            "cutmix": config.plain_mix.cutmix_alpha * config.plain_mix.probability,
        }
    if adapt.share:
        turns = adapt.affine_probability * adapt.affine_each
        found |= {
            "TokenAdapt flip": adapt.flip_probability,
            "TokenAdapt rotate": turns * adapt.rotate_degrees,
            "TokenAdapt translate": turns * adapt.translate,
            "TokenAdapt shear": turns * adapt.shear_degrees,
            "TokenAdapt crop": adapt.crop.kind != "centre",
            "TokenAdapt mixup": adapt.mix.mixup_alpha * adapt.mix.probability,
            "TokenAdapt cutmix": adapt.mix.cutmix_alpha * adapt.mix.probability,
        }
    return {name for name, strength in found.items() if strength}


@pytest.mark.parametrize("name", RECIPES)
def test_each_stands_alone_and_together_they_are_the_recipe(name: str) -> None:
    config = RECIPES[name](SPEC, CROP)
    found = list(operations(config, GRID))
    alone = [active(part) for _, part in found]
    assert len({title for title, _ in found}) == len(found)
    assert all(len(names) <= 1 for names in alone), "one operation a column"
    assert set().union(*alone) == active(config)
    assert all(part.output == "ids" for _, part in found)
    for _, part in found:
        assert part.adapt.share in (0, 1)
        if part.adapt.share:
            assert part.adapt.precision == config.adapt.precision
        if active(part) & {"synonyms", "swap", "noise", "coloradapt"}:
            assert part.crop == GRID, "operations that keep the size show all of the grid"


def test_what_is_off_is_not_shown() -> None:
    still = RecipeConfig("still", GRID, adapt=AdaptConfig(share=0.0))
    assert [title for title, _ in operations(still, GRID)] == ["RRC\non codes"]
    assert list(operations(RECIPES["eval"](SPEC, GRID), GRID)) == []
