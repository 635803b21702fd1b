"""ColorAdapt and Emb-Noise: parity, finite numbers, and normals that are normal."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.augment.color import (
    code_statistics,
    color_adapt,
    emb_noise,
    normals_from_levels,
    statistics,
    transfer,
)
from services.tokens.codebook import Codebook


def test_color_adapt_equals_the_published(augment_golden: dict[str, Tensor]) -> None:
    embeddings = augment_golden["embeddings"]
    adapted = color_adapt(embeddings, embeddings.flip(0))
    expected = augment_golden["coloradapt_flip_partner"]
    torch.testing.assert_close(adapted, expected, atol=1e-4, rtol=0)
    ids = Codebook(augment_golden["codebook"]).quantise(adapted)
    assert torch.equal(ids, augment_golden["coloradapt_codes"].long())


@settings(deadline=None, max_examples=30)
@given(level=st.floats(-1e3, 1e3, width=32), flat_partner=st.booleans())
def test_zero_spread_gives_the_partner_mean(level: float, flat_partner: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    constant = torch.full((2, 3, 5, 7), level)
    partner = constant * 2 if flat_partner else torch.randn(2, 3, 5, 7, generator=generator)
    adapted = color_adapt(constant, partner)
    mean = partner.mean((2, 3), keepdim=True).expand_as(partner)
    torch.testing.assert_close(adapted, mean)


def test_statistics_become_those_of_the_partner() -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(4, 3, 6, 6, generator=generator)
    partner = torch.randn(4, 3, 6, 6, generator=generator) * 3 + 1
    adapted = color_adapt(values, partner)
    torch.testing.assert_close(adapted.std((2, 3)), partner.std((2, 3)))
    torch.testing.assert_close(adapted.mean((2, 3)), partner.mean((2, 3)))
    torch.testing.assert_close(color_adapt(values, values), values)
    assert color_adapt(values[..., :1, :1], partner).isfinite().all()


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**31),
    codes=st.integers(1, 40),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    offset=st.floats(-100, 100, width=32),
)
def test_counted_codes_have_the_statistics_of_their_map(
    seed: int, codes: int, grid: tuple[int, int], offset: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codebook = torch.randn(codes, 5, generator=generator) + offset
    ids = torch.randint(codes, (3, *grid), generator=generator)
    ids[1] = ids[1, 0, 0]  # a single colour: no spread at all
    maps = codebook[ids].permute(0, 3, 1, 2)
    counted = code_statistics(ids.to(torch.uint16), codebook)
    torch.testing.assert_close(counted, statistics(maps), atol=2e-5 * (1 + abs(offset)), rtol=1e-4)
    gain, shift = transfer((counted[0][1:2], counted[1][1:2]), (counted[0][:1], counted[1][:1]))
    assert gain.eq(0).all()
    assert torch.equal(shift, counted[0][:1])


def test_noise_adds_both_terms() -> None:
    values = torch.zeros(1, 2, 2, 2)
    noisy = emb_noise(values, torch.tensor([[1.0, 2.0]]), torch.ones(1, 2, 2, 2), 10.0, 0.5)
    assert noisy[0, 0].eq(10.5).all()
    assert noisy[0, 1].eq(20.5).all()
    assert values.eq(0).all()


def test_levels_make_a_standard_normal() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    normals = normals_from_levels(torch.from_numpy(every)).double()
    assert abs(normals.mean()) < 1e-6
    assert abs(normals.std() - 1) < 1e-4
    assert abs((normals**4).mean() - 3) < 0.01
    assert normals.diff().gt(0).all()
    assert 4 < normals.abs().max() < 4.4
