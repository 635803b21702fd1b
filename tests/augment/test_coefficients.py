"""Recipes on DCT coefficients: what they do to pictures, block by block and row by row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from services.augment.coefficients import CoefficientAugmenter, channel_spread
from services.augment.config import (
    AdaptConfig,
    ColorConfig,
    CropConfig,
    EdaConfig,
    RecipeConfig,
)
from services.augment.recipe import RECIPES
from services.errors import InvalidInputError
from services.plan.draws import Draws
from services.tokens.dct import DCT, DCTConfig

SIZE, BLOCK, GRID = (64, 64), 8, (8, 8)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """(8, 3, 64, 64) smooth pictures of several colours, none of them symmetric."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(8, 3, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, SIZE, mode="bicubic").clamp(0.1, 0.9)


@pytest.fixture(scope="module")
def dct(pictures: torch.Tensor) -> DCT:
    config = DCTConfig(SIZE, BLOCK, keep=32, step=2 / 255, codes=32)
    return DCT.fit(config, pictures, torch.Generator().manual_seed(1), rounds=3)


def augment(
    dct: DCT, pictures: torch.Tensor, config: RecipeConfig, blocks: int = 2
) -> torch.Tensor:
    augmenter = CoefficientAugmenter(config, dct.spec, dct)
    rows = np.arange(len(pictures))
    draws = Draws(3, np.zeros(len(rows), np.int64), rows)
    labels = torch.zeros(len(rows), dtype=torch.int64)
    return augmenter(dct.coefficients(pictures), labels, draws, blocks=blocks).inputs


def plain(**changes: object) -> RecipeConfig:
    """Nothing but what is asked for, on whole maps."""
    made = RecipeConfig("test", GRID, "embeddings", plain_crop=CropConfig(kind="centre"))
    return replace(made, **changes)  # type: ignore[arg-type]


def test_without_operations_a_row_is_its_coefficients(dct: DCT, pictures: torch.Tensor) -> None:
    got = augment(dct, pictures, plain())
    torch.testing.assert_close(got * channel_spread(dct), dct.coefficients(pictures))


def test_a_mirrored_row_is_that_of_the_mirrored_picture(dct: DCT, pictures: torch.Tensor) -> None:
    """The closed form is exact but for the rounding of what is stored."""
    whole = CropConfig(area=(1.0, 1.0), aspect=(1.0, 1.0))
    adapt = AdaptConfig(share=1.0, flip_probability=1.0, affine_probability=0.0, crop=whole)
    got = dct.pixels(augment(dct, pictures, plain(adapt=adapt)) * channel_spread(dct))
    stored = dct.pixels(dct.coefficients(pictures))
    wrong = (got - stored.flip(3)).abs().mean()
    naive = dct.pixels(dct.coefficients(pictures).flip(3))
    assert wrong < 0.01
    assert wrong < 0.2 * (naive - stored.flip(3)).abs().mean()


def test_coloradapt_gives_the_partners_mean_and_spread(dct: DCT, pictures: torch.Tensor) -> None:
    color = ColorConfig(coloradapt_probability=1.0, share=1.0)
    got = augment(dct, pictures, plain(color=color), blocks=1)
    before = augment(dct, pictures, plain(), blocks=1)
    torch.testing.assert_close(
        got.mean((2, 3))[:, 0], before.flip(0).mean((2, 3))[:, 0], rtol=1e-3, atol=1e-3
    )
    assert torch.isfinite(got).all()


def test_swapped_windows_move_whole_blocks(dct: DCT, pictures: torch.Tensor) -> None:
    got = augment(dct, pictures, plain(eda=EdaConfig(swap_probability=1.0, swap_scale=0.33)))
    before = augment(dct, pictures, plain())
    assert not torch.equal(got, before)
    for row, same in zip(got, before, strict=True):
        blocks, wanted = row.flatten(1).T, same.flatten(1).T
        order, other = np.lexsort(blocks.T.numpy()), np.lexsort(wanted.T.numpy())
        torch.testing.assert_close(blocks[order], wanted[other])


def test_a_block_comes_out_the_same_whatever_came_with_it(dct: DCT, pictures: torch.Tensor) -> None:
    recipe = RECIPES["scratch"](dct.spec, (6, 6))
    recipe = replace(recipe, eda=replace(recipe.eda, synonym_probability=0.0))
    whole = augment(dct, pictures, recipe)
    assert whole.shape == (8, 3 * 32, 6, 6)
    assert torch.equal(augment(dct, pictures[:4], recipe, blocks=1), whole[:4])


def test_what_asks_for_codes_is_refused(dct: DCT) -> None:
    for name in ("scratch", "mtm", "finetune"):
        with pytest.raises(InvalidInputError, match="DCT coefficients are no codes"):
            CoefficientAugmenter(RECIPES[name](dct.spec, (6, 6)), dct.spec, dct)
    with pytest.raises(InvalidInputError, match="use the dataset's own"):
        CoefficientAugmenter(plain(), replace(dct.spec, codes=7), dct)
