"""Crops of scikit-image's colour photographs: each photograph is a class of textures.

Training and validation crops come from different parts of a photograph, so none of the pixels that
are validated on was seen in training.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from services.errors import InvalidInputError, NotFoundError
from services.pictures import put_picture
from services.plan.draws import Draws, hash_key

PHOTOGRAPHS = (
    *("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg"),
    *("ihc.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg"),
)
TRAIN_SHARE = 0.6
"""Left part of a photograph, as a share of its width, that training crops lie in."""


def write_textures(
    folder: str | Path, *, side: int = 64, train: int = 120, validation: int = 50, seed: int = 0
) -> Path:
    """`train/CLASS/NNNN.png` and `val/CLASS/NNNN.png`, square crops of `side` pixels.

    train, validation: crops of each photograph. The same arguments give the same files; those
    that stand with the same content are left alone. Returns the folder.

    Raises: InvalidInputError where a part is smaller than a crop; NotFoundError without
    scikit-image.
    """
    if min(side, train, validation) < 1:
        raise InvalidInputError(
            f"side {side}, train {train}, validation {validation}: each must be at least 1"
        )
    root, source = Path(folder), photographs()
    for name in PHOTOGRAPHS:
        with Image.open(source / name) as opened:
            photograph = opened.convert("RGB")
        border = int(photograph.width * TRAIN_SHARE)
        _crops(photograph, (0, border), side, train, root / "train" / Path(name).stem, seed)
        right = (border, photograph.width)
        _crops(photograph, right, side, validation, root / "val" / Path(name).stem, seed)
    return root


def photographs() -> Path:
    """Where scikit-image keeps them; found without importing it, for its files are all we need."""
    found = importlib.util.find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        raise NotFoundError(
            "scikit-image is not installed, whose photographs these crops are of: install it (`pip"
            " install scikit-image`), or name another folder of pictures"
        )
    folder = Path(found.submodule_search_locations[0]) / "data"
    missing = [name for name in PHOTOGRAPHS if not (folder / name).is_file()]
    if missing:
        raise NotFoundError(
            f"{folder} lacks {', '.join(missing)}: another version of scikit-image may carry them"
        )
    return folder


def _crops(
    photograph: Image.Image, part: tuple[int, int], side: int, count: int, place: Path, seed: int
) -> None:
    left, right = part
    across, down = right - left - side + 1, photograph.height - side + 1
    if min(across, down) < 1:
        raise InvalidInputError(
            f"a crop of {side} pixels does not fit the part of {right - left}x{photograph.height}"
            f" pixels that {place} is cut from: choose a smaller side"
        )
    draws = Draws(hash_key("textures", place.name, seed), left, np.arange(count))
    x = left + draws.integers("x", across)[:, 0]
    y = draws.integers("y", down)[:, 0]
    for number in range(count):
        box = (x[number], y[number], x[number] + side, y[number] + side)
        put_picture(place / f"{number:04d}.png", photograph.crop(box))
