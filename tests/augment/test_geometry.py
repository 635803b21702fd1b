"""The composed warp: identity, exact flips, right directions, and agreement between maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from services.augment.geometry import affine_matrices, warp


def _matrices(
    flip: bool = False,
    rotate: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    shear: tuple[float, float] = (0.0, 0.0),
    aspect: float = 1.0,
) -> Tensor:
    return affine_matrices(
        torch.tensor([flip]),
        torch.tensor([rotate]),
        torch.tensor([shift]),
        torch.tensor([shear]),
        aspect,
    )


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(1, 3, 56, 64, generator=torch.Generator().manual_seed(0))


def test_nothing_asked_changes_nothing(noise: Tensor) -> None:
    torch.testing.assert_close(warp(noise, _matrices()), noise, atol=1e-4, rtol=0)


def test_flip_mirrors_left_and_right(noise: Tensor) -> None:
    flipped = warp(noise, _matrices(flip=True))
    torch.testing.assert_close(flipped, noise.flip(3), atol=1e-4, rtol=0)


def test_quarter_turn_is_clockwise() -> None:
    values = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    turned = warp(values, _matrices(rotate=90.0))
    expected = torch.rot90(values, -1, (2, 3))
    torch.testing.assert_close(turned, expected, atol=1e-4, rtol=0)


def test_shift_moves_right_and_down_and_repeats_the_edge(noise: Tensor) -> None:
    moved = warp(noise, _matrices(shift=(0.25, 0.125)))
    torch.testing.assert_close(moved[..., 7:, 16:], noise[..., :-7, :-16], atol=1e-4, rtol=0)
    edge = noise[..., :-7, :1].expand(-1, -1, -1, 16)
    torch.testing.assert_close(moved[..., 7:, :16], edge, atol=1e-4, rtol=0)


def test_shear_along_x_moves_lower_rows_right() -> None:
    values = torch.zeros(1, 1, 33, 33)
    values[..., 16] = 1.0  # an upright line through the centre
    sheared = warp(values, _matrices(shear=(45.0, 0.0)))[0, 0]
    assert sheared.argmax(1)[8:25].tolist() == list(range(8, 25))
    sheared = warp(values.transpose(2, 3), _matrices(shear=(0.0, 45.0)))[0, 0]
    assert sheared.argmax(0)[8:25].tolist() == list(range(8, 25))


def test_rotation_keeps_shapes_on_an_oblong_map() -> None:
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
    disc = torch.exp(-((y - 19.5) ** 2 + (x - 29.5) ** 2) / 50)[None, None]
    turned = warp(disc, _matrices(rotate=30.0, aspect=40 / 60))
    torch.testing.assert_close(turned, disc, atol=0.02, rtol=0)


def test_steps_compose_in_the_documented_order() -> None:
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    blob = torch.exp(-((y - 28) ** 2 + (x - 38) ** 2) / 60)[None, None]
    together = warp(blob, _matrices(True, 20.0, (0.1, -0.05), (10.0, 5.0)))
    one_by_one = blob
    for step in (
        _matrices(flip=True),
        _matrices(rotate=20.0),
        _matrices(shift=(0.1, -0.05)),
        _matrices(shear=(10.0, 0.0)),
        _matrices(shear=(0.0, 5.0)),
    ):
        one_by_one = warp(one_by_one, step)
    torch.testing.assert_close(together, one_by_one, atol=0.03, rtol=0)


def test_rows_have_their_own_warp(noise: Tensor) -> None:
    matrices = torch.cat([_matrices(), _matrices(flip=True)])
    both = warp(noise.expand(2, -1, -1, -1), matrices)
    torch.testing.assert_close(both[0], noise[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(both[1], noise[0].flip(2), atol=1e-4, rtol=0)
