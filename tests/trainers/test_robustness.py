"""Corruptions against their definitions, and class maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from services.errors import FormatError, InvalidInputError, NotFoundError
from trainers.robustness import (
    BLUR_SIDE,
    BLUR_SIGMA,
    CORRUPTIONS,
    NOISE_STD,
    SEVERITIES,
    corruption,
    read_class_map,
)


def pictures(seed: int, count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, height, width, generator=generator)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 999),
    severity=st.sampled_from(SEVERITIES),
    height=st.integers(4, 40),
    width=st.integers(4, 40),
)
def test_blur_is_the_gaussian_of_its_severity(
    seed: int, severity: int, height: int, width: int
) -> None:
    images = pictures(seed, 2, height, width)
    sigma = BLUR_SIGMA[severity - 1]
    sides = (0, 0, sigma * height / BLUR_SIDE, sigma * width / BLUR_SIDE)
    wanted = gaussian_filter(images.double().numpy(), sides, mode="nearest", truncate=4.0)
    got = corruption("gaussian_blur", severity)(images, np.arange(2)).numpy()
    assert np.abs(got - wanted).max() <= 1 / 255 + 1e-5  # cut to 8 bits


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_the_spread_of_its_severity(severity: int) -> None:
    grey = torch.full((4, 3, 64, 64), 0.5)
    got = corruption("gaussian_noise", severity)(grey, np.arange(4))
    # What leaves [0, 1] is cut off there: the middle of the distribution tells its spread.
    low, high = np.quantile(got.numpy() - 0.5, [0.31, 0.69])
    assert (high - low) / 2 == pytest.approx(0.4959 * NOISE_STD[severity - 1], rel=0.04, abs=0.003)


@settings(deadline=None, max_examples=15)
@given(kind=st.sampled_from(CORRUPTIONS), cut=st.integers(1, 5), severity=st.integers(1, 5))
def test_a_picture_is_corrupted_alike_in_every_batch(kind: str, cut: int, severity: int) -> None:
    images, rows = pictures(3, 6, 12, 10), np.array([5, 0, 9, 2, 7, 4])
    change = corruption(kind, severity)  # type: ignore[arg-type]
    whole = change(images, rows)
    parts = [change(images[:cut], rows[:cut]), change(images[cut:], rows[cut:])]
    assert torch.equal(whole, torch.cat(parts))
    assert whole.shape == images.shape
    assert torch.equal(whole * 255, (whole * 255).round())


def test_severities_differ_and_others_are_refused() -> None:
    images, rows = pictures(1, 2, 112, 112), np.arange(2)
    for kind in CORRUPTIONS:
        far = [float((corruption(kind, s)(images, rows) - images).abs().mean()) for s in SEVERITIES]
        assert far == sorted(far)
        for severity in (0, 6):
            with pytest.raises(InvalidInputError, match="1 to 5"):
                corruption(kind, severity)


def test_class_maps_are_read_with_distrust(tmp_path: Path) -> None:
    good = tmp_path / "good.json"
    good.write_text('{"airplane": ["a", "b"], "cat": "c"}')
    assert read_class_map(good) == {"airplane": ["a", "b"], "cat": ["c"]}
    with pytest.raises(NotFoundError):
        read_class_map(tmp_path / "none.json")
    for text in ("", "[]", '{"a": {"b": 1}}', '{"a": 1}', "\x80"):
        bad = tmp_path / "bad.json"
        bad.write_text(text)
        with pytest.raises(FormatError, match="is no class map"):
            read_class_map(bad)
