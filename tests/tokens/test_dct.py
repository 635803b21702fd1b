from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from services.errors import InvalidInputError
from services.tokens.dct import DCT, DCTConfig, dct_filters, zigzag
from services.tokens.vitvqgan import psnr


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    """Smooth coloured gradients, with a little noise."""
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(count, 3, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(low, (height, width), mode="bilinear")
    noise = torch.rand(smooth.shape, generator=generator)
    return (smooth * 0.95 + noise * 0.05).clamp(0, 1)


def test_zigzag_follows_jpeg() -> None:
    start = [(0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 3), (1, 2), (2, 1), (3, 0)]
    order = zigzag(8)
    assert order[:10] == start
    assert order[-1] == (7, 7)
    assert len(set(order)) == 64


@given(st.integers(1, 12))
@settings(deadline=None, max_examples=12)
def test_filters_are_orthonormal(side: int) -> None:
    flat = dct_filters(side, side * side).flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(side * side), rtol=0, atol=1e-5)


def test_coefficients_of_grey_and_white() -> None:
    model = DCT(DCTConfig((8, 16), codes=4))
    grey = model.coefficients(torch.full((1, 3, 8, 16), 0.5))
    assert not grey.any()
    white = model.coefficients(torch.ones(1, 3, 8, 16))
    # The mean of Y alone: 8 * 0.5 / step, rounded.
    assert white[0, 0].tolist() == [[64, 64]]
    assert not white[0, 1:].any()


@pytest.mark.parametrize(("block", "keep", "least_db"), [(8, 64, 35), (4, 16, 35), (8, 6, 22)])
def test_pixels_come_back_up_to_rounding(block: int, keep: int, least_db: float) -> None:
    images = pictures(3, 32, 48)
    model = DCT(DCTConfig((32, 48), block, keep, step=0.02, codes=4))
    coefficients = model.coefficients(images)
    assert coefficients.shape == (3, 3 * keep, 32 // block, 48 // block)
    assert torch.equal(coefficients, coefficients.round())
    assert psnr(model.pixels(coefficients), images).min() > least_db


class Operations(TorchDispatchMode):
    """Names of all that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.name())
        return func(*args, **(kwargs or {}))


def test_nothing_runs_that_a_gpu_computes_from_ten_bits() -> None:
    """TF32, which torch allows convolutions by default and products of matrices not."""
    model = DCT(DCTConfig((32, 48), codes=4))
    with Operations() as ran:
        model.pixels(model.coefficients(pictures(1, 32, 48)))
    assert {"aten::bmm", "aten::mm"} & ran.seen
    assert [name for name in ran.seen if "conv" in name] == []


def test_a_fitted_codebook_beats_a_smaller_one_and_is_repeatable() -> None:
    images = pictures(8, 32, 32)
    quality = []
    for codes in (4, 64):
        config = DCTConfig((32, 32), codes=codes)
        first, again = (DCT.fit(config, images, torch.Generator().manual_seed(1)) for _ in range(2))
        assert torch.equal(first.codebook.weight, again.codebook.weight)
        assert torch.equal(first.codebook.weight, first.codebook.weight.round())
        ids = first.encode(images)
        assert ids.shape == (8, 4, 4)
        assert ids.max() < codes
        quality.append(float(psnr(first.decode(ids), images).mean()))
    assert quality[1] > quality[0] + 2


def test_as_many_codes_as_vectors_lose_nothing() -> None:
    images = pictures(1, 16, 16)
    model = DCT.fit(DCTConfig((16, 16), codes=16), images, torch.Generator().manual_seed(0))
    restored = model.codebook.embed(model.encode(images))
    assert torch.equal(restored, model.coefficients(images))


def test_wrong_picture_size_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"\(3, 8, 8\).*\(3, 16, 16\)"):
        DCT(DCTConfig((16, 16), codes=2)).encode(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": (60, 64)},
        {"image_size": (2048, 2048)},
        {"image_size": (128, 128), "block": 128},
        {"keep": 0},
        {"keep": 65},
        {"step": 0.0},
        {"slope": -0.1},
        {"codes": 0},
    ],
)
def test_configs_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        DCTConfig(**wrong)
