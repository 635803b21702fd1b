from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from services.tokens.vitvqgan import ViTSize, ViTVQGAN, ViTVQGANConfig


@pytest.fixture(scope="session")
def vitvqgan_golden(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "vitvqgan.safetensors")


@pytest.fixture(scope="session")
def vqgan_golden(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "vqgan.safetensors")


@pytest.fixture
def tiny() -> ViTVQGAN:
    """A small ViT-VQGAN on a grid that is not square."""
    torch.manual_seed(0)
    size = ViTSize(dim=16, depth=1, heads=2, mlp=32)
    config = ViTVQGANConfig((16, 24), 4, size, size, codes=40, channels=6, dim_head=8)
    return ViTVQGAN(config).eval()
