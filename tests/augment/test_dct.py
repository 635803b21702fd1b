"""Operations on DCT coefficients against the same done to pixels, then transformed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from services.augment.color import color_adapt, emb_noise
from services.augment.crop import window
from services.augment.dct import (
    adjust_planes,
    color_adapt_planes,
    hflip,
    plane_noise,
    plane_statistics,
)
from services.augment.mix import mixup, paste
from services.tokens.dct import DCT, DCTConfig

SIZE = (24, 40)


def transform(block: int = 8) -> DCT:
    return DCT(DCTConfig(image_size=SIZE, block=block, keep=block**2))


def planes(seed: int, rows: int = 4) -> Tensor:
    """Y, Cb, Cr around 0, which differ in mean and spread."""
    values = torch.randn(rows, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
    return values * torch.tensor([0.2, 0.05, 0.1]).view(3, 1, 1) + 0.1 * values[:, :, :1, :1]


def of_pixels(model: DCT, planes_N3HW: Tensor) -> Tensor:
    """Coefficients, not rounded."""
    waves = F.conv2d(planes_N3HW, model.filters, stride=model.config.block, groups=3)
    return waves / model.steps


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("block", [4, 8])
def test_flips_flip(block: int) -> None:
    model, pixels = transform(block), planes(0)
    flip = torch.tensor([True, False, True, False])
    wanted = torch.where(flip.view(-1, 1, 1, 1), pixels.flip(3), pixels)
    close(hflip(of_pixels(model, pixels), flip, block), of_pixels(model, wanted))


def test_a_flip_of_stored_coefficients_is_the_flipped_picture() -> None:
    model = DCT(DCTConfig(image_size=SIZE, keep=20))
    images = torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    every = torch.ones(3, dtype=torch.bool)
    stored = model.coefficients(images)
    flipped = hflip(stored, every, 8)
    assert (flipped == model.coefficients(images.flip(3))).float().mean() > 0.999  # but for ties
    torch.testing.assert_close(model.pixels(flipped), model.pixels(stored).flip(3))
    assert torch.equal(hflip(flipped, every, 8), stored)


def test_crops_of_whole_blocks_are_those_of_pixels() -> None:
    model, pixels = transform(), planes(2)
    boxes = torch.tensor([[0, 0], [1, 2], [0, 3], [1, 1]])
    cut = window(of_pixels(model, pixels), F.pad(boxes, (0, 2)), (2, 2))
    close(cut, of_pixels(model, window(pixels, F.pad(boxes * 8, (0, 2)), (16, 16))))


def test_mixing_is_that_of_pixels() -> None:
    model, pixels, others = transform(), planes(3), planes(4)
    maps = of_pixels(model, pixels), of_pixels(model, others)
    weight = torch.tensor([0.0, 0.3, 0.9, 1.0])
    close(mixup(*maps, weight), of_pixels(model, mixup(pixels, others, weight)))
    boxes = torch.tensor([[0, 0, 2, 3], [1, 2, 1, 1], [0, 0, 0, 0], [0, 0, 3, 5]])
    close(paste(*maps, boxes), of_pixels(model, paste(pixels, others, boxes * 8)))


def test_contrast_and_brightness_are_those_of_pixels() -> None:
    model, pixels = transform(), planes(5)
    generator = torch.Generator().manual_seed(6)
    gain, shift = (torch.randn(4, 3, generator=generator) for _ in range(2))
    wanted = pixels * gain[..., None, None] + shift[..., None, None]
    close(
        adjust_planes(of_pixels(model, pixels), gain, shift, model.steps, 8),
        of_pixels(model, wanted),
    )


def test_color_adapt_is_that_of_pixels() -> None:
    model, pixels, partner = transform(), planes(7), planes(8).flip(1)
    found = color_adapt_planes(of_pixels(model, pixels), of_pixels(model, partner), model.steps, 8)
    close(found, of_pixels(model, color_adapt(pixels, partner)))
    mean, spread = plane_statistics(found, model.steps, 8)
    close(mean, partner.mean((2, 3)))
    close(spread, partner.std((2, 3)))


def test_color_adapt_of_a_flat_plane_is_finite() -> None:
    model = transform()
    flat = of_pixels(model, torch.full((4, 3, *SIZE), 0.25))
    partner = planes(9)
    found = color_adapt_planes(flat, of_pixels(model, partner), model.steps, 8)
    wanted = partner.mean((2, 3), keepdim=True).expand_as(partner)
    close(found, of_pixels(model, wanted))


def test_noise_is_that_of_pixels() -> None:
    model, pixels = transform(), planes(10)
    generator = torch.Generator().manual_seed(11)
    plane = torch.randn(4, 3, generator=generator)
    noise = torch.randn(pixels.shape, generator=generator)
    element = of_pixels(model, noise) * model.steps
    assert abs(float(element.std()) - 1) < 0.02  # the transform keeps normals normal
    maps = of_pixels(model, pixels)
    found = plane_noise(maps, plane, element, 0.3, 0.2, model.steps, 8)
    close(found, of_pixels(model, emb_noise(pixels, plane, noise, 0.3, 0.2)))
    assert torch.equal(maps, of_pixels(model, pixels))
