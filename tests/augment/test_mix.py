"""Mixup and CutMix: what is taken from whom, areas that match weights, and Beta numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.augment.mix import cutmix_boxes, kept_share, mixup, paste, symmetric_beta


def test_mixup_blends_and_a_weight_of_one_keeps_the_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    own, other = torch.randn(2, 2, 3, 4, 5, generator=generator).unbind(0)
    mixed = mixup(own, other, torch.tensor([1.0, 0.25]))
    assert torch.equal(mixed[0], own[0])
    torch.testing.assert_close(mixed[1], 0.25 * own[1] + 0.75 * other[1])


@pytest.mark.parametrize("shape", [(2, 6, 7), (2, 3, 6, 7)])
def test_paste_takes_the_box_from_the_partner(shape: tuple[int, ...]) -> None:
    own, other = torch.zeros(shape), torch.ones(shape)
    mixed = paste(own, other, torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0]]))
    assert mixed[0, ..., 1:4, 2:6].eq(1).all()
    assert mixed[0].sum() == 12 * math.prod(shape[1:-2])
    assert mixed[1].eq(0).all()


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 64), st.integers(1, 64)),
)
def test_boxes_fit_and_share_is_the_true_area(seed: int, size: tuple[int, int]) -> None:
    draws = np.random.default_rng(seed).random((50, 3), dtype=np.float32)
    boxes = cutmix_boxes(draws[:, 0], draws[:, 1:], size)
    assert (boxes >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= size[0]).all()
    assert (boxes[:, 1] + boxes[:, 3] <= size[1]).all()
    mixed = paste(torch.ones(50, *size), torch.zeros(50, *size), torch.from_numpy(boxes))
    np.testing.assert_allclose(mixed.mean((1, 2)).numpy(), kept_share(boxes, size), atol=1e-5)


def test_area_follows_the_weight_where_the_box_is_not_cut() -> None:
    centre = np.full((9, 2), 0.5, dtype=np.float32)
    weight = np.linspace(0, 1, 9, dtype=np.float32)
    share = kept_share(cutmix_boxes(weight, centre, (64, 64)), (64, 64))
    np.testing.assert_allclose(share, weight, atol=0.06)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0, 40.0])
def test_beta_numbers_have_the_right_moments(alpha: float) -> None:
    draws = ((np.arange(200_000) + 0.5) / 200_000).astype(np.float32)
    values = symmetric_beta(draws, alpha).astype(np.float64)
    assert values.min() >= 0
    assert values.max() <= 1
    assert np.diff(values).min() >= 0
    assert abs(values.mean() - 0.5) < 1e-4
    assert abs(values.var() - 1 / (4 * (2 * alpha + 1))) < 2e-4
    fourth = 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))  # central moment of Beta(alpha, alpha)
    assert abs(((values - 0.5) ** 4).mean() - fourth) < 1e-4


def test_beta_of_one_is_uniform() -> None:
    draws = np.linspace(0, 0.999, 100, dtype=np.float32)
    np.testing.assert_allclose(symmetric_beta(draws, 1.0), draws, atol=1e-6)
