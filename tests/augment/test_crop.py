"""Crops: parity with the published resize and with `F.interpolate`, and boxes that always fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.augment.boxes import RESIZED_DRAWS, centre_boxes, random_boxes, resized_boxes
from services.augment.crop import resize_crop, window
from services.tokens.codebook import Codebook


def test_resize_and_quantise_equal_the_published(augment_golden: dict[str, Tensor]) -> None:
    codebook = Codebook(augment_golden["codebook"])
    expected = augment_golden["rrc_bicubic_embeddings"]
    boxes = augment_golden["rrc_boxes_yxhw"].long()
    cut = resize_crop(codebook.embed(augment_golden["tokens"]), boxes, expected.shape[-2:])
    torch.testing.assert_close(cut, expected, atol=1e-4, rtol=0)
    assert torch.equal(codebook.quantise(cut), augment_golden["rrc_codes"].long())


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    channels_last=st.booleans(),
)
def test_resize_equals_interpolation_row_by_row(
    seed: int, grid: tuple[int, int], size: tuple[int, int], channels_last: bool
) -> None:
    generator = np.random.default_rng(seed)
    draws = generator.random((4, RESIZED_DRAWS), dtype=np.float32)
    boxes = resized_boxes(draws, grid, (0.08, 1.0), (0.75, 1.34))
    values = torch.from_numpy(generator.standard_normal((4, 3, *grid), dtype=np.float32))
    if channels_last:
        values = values.contiguous(memory_format=torch.channels_last)
    cut = resize_crop(values, torch.from_numpy(boxes), size)
    for row, (y, x, h, w) in enumerate(boxes):
        part = values[row : row + 1, :, y : y + h, x : x + w].contiguous()
        expected = F.interpolate(part, size=size, mode="bicubic", align_corners=False)
        torch.testing.assert_close(cut[row : row + 1], expected, atol=1e-4, rtol=0)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    grid=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    low=st.floats(0.01, 1),
)
def test_resized_boxes_fit(seed: int, grid: tuple[int, int], low: float) -> None:
    draws = np.random.default_rng(seed).random((100, RESIZED_DRAWS), dtype=np.float32)
    draws[0] = np.nextafter(np.float32(1), np.float32(0))
    y, x, h, w = resized_boxes(draws, grid, (low, 1.0), (3 / 4, 4 / 3)).T
    assert (y >= 0).all()
    assert (x >= 0).all()
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (y + h <= grid[0]).all()
    assert (x + w <= grid[1]).all()


def test_area_and_aspect_stay_in_their_ranges() -> None:
    draws = np.random.default_rng(0).random((5000, RESIZED_DRAWS), dtype=np.float32)
    boxes = resized_boxes(draws, (64, 64), (0.2, 1.0), (3 / 4, 4 / 3))
    share = boxes[:, 2] * boxes[:, 3] / 64**2
    aspect = boxes[:, 3] / boxes[:, 2]
    assert 0.19 < share.min() < 0.22
    assert share.max() <= 1
    assert 0.7 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.42
    assert abs(np.log(aspect).mean()) < 0.01


def test_central_box_of_the_nearest_aspect_where_no_try_fits() -> None:
    draws = np.zeros((1, RESIZED_DRAWS), dtype=np.float32)
    boxes = resized_boxes(draws, (4, 40), (1.0, 1.0), (3 / 4, 4 / 3))
    assert boxes.tolist() == [[0, 17, 4, 5]]
    boxes = resized_boxes(draws, (40, 4), (1.0, 1.0), (3 / 4, 4 / 3))
    assert boxes.tolist() == [[17, 0, 5, 4]]


@pytest.mark.parametrize("tail", [(), (3,)])
def test_window_cuts_exactly(tail: tuple[int, ...]) -> None:
    values = torch.arange(2 * 3 * 8 * 10).view(2, 3, 8, 10)
    values = values if tail else values[:, 0]
    boxes = np.concatenate(
        [
            centre_boxes(1, (8, 10), (6, 6)),
            random_boxes(np.full((1, 2), 0.999, dtype=np.float32), (8, 10), (6, 6)),
        ]
    )
    assert boxes.tolist() == [[1, 2, 6, 6], [2, 4, 6, 6]]
    cut = window(values, torch.from_numpy(boxes), (6, 6))
    assert torch.equal(cut[0], values[0, ..., 1:7, 2:8])
    assert torch.equal(cut[1], values[1, ..., 2:8, 4:10])
