"""Tokens of real pictures: photographs that come with packages, and a tokenizer trained on them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from services.pictures import list_pictures, read_picture
from services.tokens.tokenizer import load_tokenizer
from services.types import IdArray, IntArray

TRAINER = Path(__file__).resolve().parents[2] / "trainers" / "tokenizer.py"
SIDE = 64  # of a crop, pixels
BUNDLED = (
    "astronaut",
    "chelsea",
    "coffee",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
    "rocket",
)


@dataclass(frozen=True)
class Grids:
    """ids: (N, H, W) uint16. labels: (N,) picture or class that a row comes from."""

    ids: IdArray
    labels: IntArray
    codes: int

    @property
    def flat(self) -> IdArray:
        return self.ids.reshape(len(self.ids), -1)

    @property
    def images(self) -> float:
        """Images of 1024 tokens that there are tokens for."""
        return self.ids.size / 1024

    def sorted(self, order: IntArray) -> Grids:
        return Grids(self.ids[order], self.labels[order], self.codes)


def photographs() -> dict[str, np.ndarray]:
    """Name -> (H, W, 3) uint8."""
    dataset = load_sample_images()
    names = [Path(name).stem for name in dataset.filenames]
    found = dict(zip(names, dataset.images, strict=True))
    try:
        from skimage import data
    except ImportError:
        return found
    for name in BUNDLED:
        found[name] = getattr(data, name)()
    return found


def write_crops(folder: Path, count: int) -> str:
    """`count` crops at random places, as many of each photograph; says what they were cut from."""
    rng = np.random.default_rng(4)
    photos = photographs()
    for name, pixels in photos.items():
        (folder / name).mkdir(parents=True)
        for number in range(count // len(photos)):
            top, left = (int(rng.integers(0, size - SIDE + 1)) for size in pixels.shape[:2])
            crop = Image.fromarray(pixels[top : top + SIDE, left : left + SIDE])
            crop.save(folder / name / f"{number:05d}.png", compress_level=1)
    return ", ".join(photos)


def tokenised(images: Path, scratch: Path, epochs: int, **model: int) -> Grids:
    """Tokens of all pictures of a folder, from a tokenizer that is trained on them."""
    options = {"pictures.images": images, "out": scratch / "run", "loop.epochs": epochs}
    options |= {f"model.{name.replace('_', '-')}": value for name, value in model.items()}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, str(TRAINER), "--recipe", "tokenizer-tiny", "--cluster.no-ray"]
    subprocess.run([*command, *words], check=True, stdout=subprocess.DEVNULL)
    tokenizer = load_tokenizer(scratch / "run" / "tokenizer.safetensors")
    spec = tokenizer.spec
    pictures = list_pictures(images).splits["train"]
    size, blocks = (spec.image_height, spec.image_width), []
    for start in range(0, len(pictures), 128):
        part = [read_picture(one.path, *size) for one in pictures[start : start + 128]]
        with torch.inference_mode():
            ids = tokenizer.encode(torch.from_numpy(np.stack(part)).float() / 255)
        blocks.append(ids.numpy().astype(np.uint16))
    labels = np.array([picture.label for picture in pictures])
    shuffled = np.random.default_rng(5).permutation(len(labels))
    return Grids(np.concatenate(blocks), labels, spec.codes).sorted(shuffled)
