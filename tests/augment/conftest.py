"""Inputs that several tests of this room share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from services.augment.tokenadapt import TokenAdapt, TokenAdaptConfig
from services.wire.seit import v1 as wire


@pytest.fixture(scope="session")
def augment_golden(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "augment.safetensors")


@pytest.fixture(scope="session")
def tokenadapt_golden(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "tokenadapt.safetensors")


@pytest.fixture(scope="session")
def spec() -> wire.TokenSpec:
    """A grid that is not square, of few codes, so that no published size can hide in the code."""
    return wire.TokenSpec(
        grid_height=8, grid_width=10, codes=23, channels=6, image_height=64, image_width=80
    )


@pytest.fixture(scope="session")
def crop() -> tuple[int, int]:
    """A training grid inside of `spec`."""
    return 6, 7


@pytest.fixture(scope="session")
def codebook(spec: wire.TokenSpec) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(spec.codes, spec.channels, generator=generator)


@pytest.fixture(scope="session")
def tokenadapt(spec: wire.TokenSpec, crop: tuple[int, int]) -> TokenAdapt:
    """Small networks with the start values of a training run."""
    torch.manual_seed(0)
    config = TokenAdaptConfig(
        grid=(spec.grid_height, spec.grid_width),
        out_grid=crop,
        channels=spec.channels,
        codes=spec.codes,
        dim=16,
        heads=2,
        mlp=32,
        dim_head=8,
    )
    return TokenAdapt(config).eval()
