"""What the proof trains on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from services.tokens.tokenizer import save_tokenizer
from services.tokens.vitvqgan import ViTSize, ViTVQGAN, ViTVQGANConfig

PICTURES, CLASSES, PIXELS = 640, 4, 32


def make_input(folder: Path) -> None:
    """Pictures of classes that a model can tell apart, and a small tokenizer."""
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        place = folder / "images" / f"class{number % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 60, (PIXELS, PIXELS, 3))
        colour = np.eye(4, 3)[number % CLASSES] * 180
        Image.fromarray((noise + colour).astype(np.uint8)).save(place / f"{number:04d}.png")
    torch.manual_seed(0)
    size = ViTSize(16, 1, 1, 32)
    model = ViTVQGAN(ViTVQGANConfig((PIXELS, PIXELS), 4, size, size, 32, 8, 16))
    (folder / "tokenizer.safetensors").write_bytes(save_tokenizer(model))
    # Containers read it as a user of their own.
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
