"""Parameters from draws: published frequencies, ranges, and pairs that exist."""

from __future__ import annotations

import numpy as np
import pytest

from services.augment.boxes import choose_boxes
from services.augment.choices import (
    choose_color,
    choose_eda,
    choose_mix,
    choose_warp,
    partners,
)
from services.augment.config import AdaptConfig, ColorConfig, CropConfig, EdaConfig, MixConfig
from services.plan.draws import Draws

ROWS = 4000


@pytest.fixture(scope="module")
def draws() -> Draws:
    return Draws(3, 1, np.arange(ROWS))


def test_partners_are_mirror_images_that_exist() -> None:
    assert partners(np.array([7, 8, 9, 10])).tolist() == [3, 2, 1, 0]
    assert partners(np.array([7, 8, 9])).tolist() == [2, 1, 0]
    assert partners(np.array([7, 8, -1, -1])).tolist() == [0, 1, 1, 0]
    assert partners(np.array([-1, -1])).tolist() == [0, 1]


def test_eda_frequencies(draws: Draws) -> None:
    choice = choose_eda(EdaConfig(synonym_probability=0.25, swap_probability=0.25), draws, (8, 8))
    assert abs(len(choice.synonym_rows) / ROWS - 0.25) < 0.03
    assert abs(len(choice.swap_rows) / ROWS - 0.25) < 0.03
    assert not set(choice.synonym_rows) & set(choice.swap_rows)
    assert choice.replace.shape == choice.pick.shape == (len(choice.synonym_rows), 64)
    assert abs(choice.replace.mean() - 0.25) < 0.01
    assert set(np.unique(choice.pick)) == {0, 1, 2, 3, 4}
    assert choice.windows[:, 0].max() == 1  # below a quarter of 8


def test_color_is_one_choice_a_block_on_half_of_its_rows() -> None:
    config = ColorConfig(noise_probability=0.5, coloradapt_probability=0.25)
    noisy, adapted = 0, 0
    for block in range(400):
        choice = choose_color(config, Draws(0, 0, np.arange(8) + 8 * block), 3, (5, 3))
        assert {len(choice.noise_rows), len(choice.adapt_rows)} <= {0, 4}
        assert not (len(choice.noise_rows) and len(choice.adapt_rows))
        assert choice.levels.shape == (len(choice.noise_rows), 45)
        assert choice.channel.shape == (len(choice.noise_rows), 3)
        assert (choice.partner == 7 - choice.adapt_rows).all()
        noisy += len(choice.noise_rows) > 0
        adapted += len(choice.adapt_rows) > 0
    assert abs(noisy / 400 - 0.5) < 0.08
    assert abs(adapted / 400 - 0.25) < 0.07


def test_every_row_of_a_block_is_recoloured_alike() -> None:
    config = ColorConfig(noise_probability=1.0)
    seen = np.zeros(6)
    for epoch in range(400):
        seen[choose_color(config, Draws(0, epoch, np.arange(6)), 1, (1, 1)).noise_rows] += 1
    assert np.abs(seen / 400 - 0.5).max() < 0.1


def test_warp_frequencies_and_ranges(draws: Draws) -> None:
    choice = choose_warp(AdaptConfig(), draws)
    assert abs(choice.flip.mean() - 0.5) < 0.03
    values = np.column_stack([choice.rotate / 30, choice.shift / 0.2, choice.shear / 15])
    used = values != 0
    assert np.abs(values).max() <= 1
    assert np.abs(values).max() > 0.98
    assert np.abs(used.mean(0) - 0.25).max() < 0.03  # p=0.5 of p=0.5
    assert abs(used.any(1).mean() - 0.5 * (1 - 0.5**5)) < 0.03
    assert np.abs(values.sum(0) / used.sum(0)).max() < 0.06
    still = choose_warp(AdaptConfig(flip_probability=0, affine_probability=0), draws)
    assert not still.flip.any()
    assert not still.rotate.any()
    assert not still.shift.any()
    assert not still.shear.any()


def test_each_crop_kind(draws: Draws) -> None:
    centre = choose_boxes(CropConfig(kind="centre"), draws, "crop", (8, 10), (6, 6))
    assert (centre == [1, 2, 6, 6]).all()
    random = choose_boxes(CropConfig(kind="random"), draws, "crop", (8, 10), (6, 6))
    assert np.unique(random[:, 0]).tolist() == [0, 1, 2]
    assert np.unique(random[:, 1]).tolist() == [0, 1, 2, 3, 4]
    resized = choose_boxes(CropConfig(area=(0.2, 1.0)), draws, "crop", (8, 10), (6, 6))
    assert len(np.unique(resized, axis=0)) > 50


def test_mixup_and_cutmix_share_the_rows(draws: Draws) -> None:
    choice = choose_mix(MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0), draws, "mix", (28, 28))
    cut = choice.boxes[:, 2] * choice.boxes[:, 3] > 0
    blended = choice.weight < 1
    assert not (cut & blended).any()
    assert abs(blended.mean() - 0.5) < 0.03
    assert (choice.share[blended] == choice.weight[blended]).all()
    assert abs(choice.weight[blended].mean() - 0.5) < 0.03
    assert (choice.partner == ROWS - 1 - np.arange(ROWS)).all()
    assert choice.share.dtype == np.float32


@pytest.mark.parametrize("config", [MixConfig(), MixConfig(cutmix_alpha=1.0, probability=0.0)])
def test_no_mixing_leaves_rows_alone(config: MixConfig, draws: Draws) -> None:
    choice = choose_mix(config, draws, "mix", (28, 28))
    assert (choice.share == 1).all()
    assert (choice.partner == np.arange(ROWS)).all()
    assert not choice.boxes.any()


def test_rows_without_a_partner_are_not_mixed() -> None:
    rows = np.array([4, 5, 6, -1])
    choice = choose_mix(MixConfig(mixup_alpha=0.8), Draws(0, 0, rows), "mix", (4, 4))
    assert choice.share[0] == 1
    assert choice.partner[0] == 0
    assert (choice.share[1:3] < 1).all()


def test_one_kind_alone_is_always_taken(draws: Draws) -> None:
    mixup = choose_mix(MixConfig(mixup_alpha=0.8), draws, "mix", (28, 28))
    assert not mixup.boxes.any()
    assert (mixup.weight < 1).mean() > 0.99
    cutmix = choose_mix(MixConfig(cutmix_alpha=1.0), draws, "mix", (28, 28))
    assert (cutmix.weight == 1).all()
    assert (cutmix.boxes[:, 2] > 0).mean() > 0.9
