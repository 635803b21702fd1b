"""A mask goes where its picture goes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.augment.augmenter import Augmenter
from services.augment.boxes import RESIZED_DRAWS, resized_boxes
from services.augment.config import (
    AdaptConfig,
    CropConfig,
    EdaConfig,
    MixConfig,
    RecipeConfig,
    check_geometric,
)
from services.augment.crop import resize_crop
from services.augment.geometry import affine_matrices, warp
from services.augment.masks import augment_masks, sample
from services.augment.recipe import RECIPES
from services.augment.tokenadapt import TokenAdapt, TokenAdaptConfig
from services.errors import InvalidInputError
from services.plan.draws import Draws
from services.types import IGNORED
from services.wire.seit import v1 as wire

ROWS, SIDE, PIXELS, CODES = 8, 16, 4, 3


def regions(seed: int, rows: int = ROWS, height: int = SIDE, width: int = SIDE) -> Tensor:
    """(N, H, W) ids below CODES in regions several cells wide."""
    noise = torch.rand(rows, CODES, 3, 3, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (height, width), mode="bicubic").argmax(1)


def pixels_of(ids: Tensor) -> Tensor:
    """Each token's id as the class of its pixels, (N, 4H, 4W) uint8."""
    return ids.repeat_interleave(PIXELS, 1).repeat_interleave(PIXELS, 2).to(torch.uint8)


class Ideal(TokenAdapt):
    """f and g that do no more than they should: cells, and the code nearest to a token's mean."""

    codes: Tensor

    def convert(self, emb_NDHW: Tensor) -> Tensor:
        return F.interpolate(emb_NDHW, scale_factor=self.config.scale, mode="nearest")

    def revert(self, map_NDhw: Tensor) -> Tensor:
        means = F.avg_pool2d(map_NDhw, self.config.scale).flatten(2).transpose(1, 2)
        return -torch.cdist(means, self.codes)


def setup(config: RecipeConfig, seed: int, side: int = SIDE) -> tuple[Tensor, Tensor, Tensor]:
    """(ids that come out, masks that come out, masks that went in) of a recipe."""
    spec = wire.TokenSpec(
        grid_height=side,
        grid_width=side,
        codes=CODES,
        channels=CODES,
        image_height=side * PIXELS,
        image_width=side * PIXELS,
    )
    model = Ideal(
        TokenAdaptConfig((side, side), config.crop, CODES, CODES, dim=8, heads=1, mlp=8, dim_head=8)
    )
    model.codes = torch.eye(CODES)
    augmenter = Augmenter(config, spec, model.codes, model if config.adapt.share else None)
    ids = regions(seed, height=side, width=side)
    draws = Draws(seed, np.zeros(ROWS, np.int64), np.arange(ROWS))
    labels = torch.zeros(ROWS, dtype=torch.int64)
    moved = augmenter(ids, labels, draws, blocks=2).inputs
    masks = augment_masks(
        config,
        pixels_of(ids),
        draws,
        2,
        grid=augmenter.grid,
        map_grid=model.map_grid if config.adapt.share else None,
    )
    return moved, masks, pixels_of(ids)


def agreement(ids: Tensor, masks: Tensor) -> float:
    """Share of the pixels with a class that have their token's."""
    there = masks != IGNORED
    return float((pixels_of(ids) == masks)[there].float().mean())


@pytest.mark.parametrize("kind", ["random", "centre"])
@pytest.mark.parametrize("seed", range(5))
def test_a_window_of_tokens_is_the_window_of_their_pixels(kind: str, seed: int) -> None:
    config = RecipeConfig("cut", (9, 9), plain_crop=CropConfig(kind=kind))  # type: ignore[arg-type]
    ids, masks, _ = setup(config, seed)
    assert torch.equal(pixels_of(ids), masks)


@pytest.mark.parametrize("crop", [(16, 16), (10, 10)])
@pytest.mark.parametrize("seed", range(6))
def test_a_mask_follows_its_tokens_through_tokenadapt(seed: int, crop: tuple[int, int]) -> None:
    spec = wire.TokenSpec(grid_height=SIDE, grid_width=SIDE, codes=CODES, channels=CODES)
    config = RECIPES["segment"](spec, crop)
    ids, masks, before = setup(replace(config, adapt=replace(config.adapt, share=1.0)), seed)
    assert masks.shape == (ROWS, crop[0] * PIXELS, crop[1] * PIXELS)
    assert agreement(ids, masks) > 0.87  # but for the borders of regions, a token wide
    if crop == (SIDE, SIDE):  # and it did move: unmoved masks would not agree
        assert agreement(ids, before) < agreement(ids, masks) - 0.1


def test_only_rows_of_the_path_are_moved() -> None:
    spec = wire.TokenSpec(grid_height=SIDE, grid_width=SIDE, codes=CODES, channels=CODES)
    config = RECIPES["segment"](spec, (SIDE, SIDE))
    assert config.adapt.share == 0.5
    ids, masks, before = setup(config, 3)
    same = [torch.equal(a, b) for a, b in zip(masks, before, strict=True)]
    assert same == [True, True, False, False] * 2  # the last half of each of two blocks
    assert agreement(ids[[0, 1, 4, 5]], masks[[0, 1, 4, 5]]) == 1


turns = st.builds(
    lambda *parts: parts,
    st.booleans(),
    st.floats(-60, 60),
    st.tuples(st.floats(-0.3, 0.3), st.floats(-0.3, 0.3)),
    st.tuples(st.floats(-20, 20), st.floats(-20, 20)),
)


@settings(deadline=None, max_examples=40)
@given(turns, st.integers(0, 2**32), st.sampled_from([(48, 48), (32, 56)]))
def test_a_mask_is_warped_and_cut_as_a_picture_of_it_is(
    turn: tuple[bool, float, tuple[float, float], tuple[float, float]],
    seed: int,
    size: tuple[int, int],
) -> None:
    """A picture of the classes goes through `warp` and `resize_crop`, the mask through `sample`."""
    flip, rotate, shift, shear = turn
    mask = regions(seed % 1000, 2, *size)
    matrices = affine_matrices(
        torch.tensor([flip] * 2),
        torch.tensor([rotate] * 2),
        torch.tensor([shift] * 2),
        torch.tensor([shear] * 2),
        aspect=size[0] / size[1],
    )
    draws = np.random.default_rng(seed).random((2, RESIZED_DRAWS)).astype(np.float32)
    boxes = torch.from_numpy(resized_boxes(draws, size, (0.3, 1.0), (0.75, 1.33)))
    picture = F.one_hot(mask, CODES).permute(0, 3, 1, 2).float()
    wanted = resize_crop(warp(picture, matrices), boxes, (40, 44)).argmax(1)
    found = sample(mask.to(torch.uint8), boxes, size, (40, 44), matrices)
    there = found != IGNORED
    if there.float().mean() > 0.2:
        assert (found == wanted)[there].float().mean() > 0.93


def test_outside_of_the_picture_there_is_no_class() -> None:
    mask = torch.ones(1, 20, 20, dtype=torch.uint8)
    none = torch.zeros(1)
    right = affine_matrices(none.bool(), none, torch.tensor([[0.25, 0.0]]), torch.zeros(1, 2))
    moved = sample(mask, torch.tensor([[0, 0, 10, 10]]), (10, 10), (20, 20), right)[0]
    assert (moved[:, :5] == IGNORED).all()
    assert (moved[:, 5:] == 1).all()


@pytest.mark.parametrize("flip", [False, True])
def test_mirroring_is_exact(flip: bool) -> None:
    mask = torch.randint(0, 250, (3, 12, 18), generator=torch.Generator().manual_seed(1)).byte()
    zeros = torch.zeros(3)
    turn = affine_matrices(
        torch.tensor([flip] * 3), zeros, torch.zeros(3, 2), torch.zeros(3, 2), aspect=12 / 18
    )
    whole = torch.tensor([[0, 0, 4, 6]] * 3)
    assert torch.equal(sample(mask, whole, (4, 6), (12, 18), turn), mask.flip(2) if flip else mask)


@pytest.mark.parametrize(
    "recipe",
    [
        RecipeConfig("x", (4, 4), plain_mix=MixConfig(cutmix_alpha=1.0)),
        RecipeConfig("x", (4, 4), adapt=AdaptConfig(0.5, mix=MixConfig(mixup_alpha=1.0))),
        RecipeConfig("x", (4, 4), eda=EdaConfig(swap_probability=0.1)),
    ],
)
def test_recipes_that_masks_cannot_follow_are_refused(recipe: RecipeConfig) -> None:
    with pytest.raises(InvalidInputError, match="would no longer fit"):
        check_geometric(recipe)


def test_pixels_that_no_token_stands_for_are_refused() -> None:
    config = RecipeConfig("cut", (2, 2), plain_crop=CropConfig(kind="centre"))
    draws = Draws(0, np.zeros(1, np.int64), np.arange(1))
    masks = torch.zeros(1, 9, 8, dtype=torch.uint8)
    with pytest.raises(InvalidInputError, match="no whole number of pixels"):
        augment_masks(config, masks, draws, 1, grid=(4, 4), map_grid=None)
