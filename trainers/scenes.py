"""Small pictures with masks: handwritten digits on patches of photographs.

    python trainers/scenes.py --out scenes

Laid out as ADE-20k is: `images/training`, `images/validation`, `annotations/training`, ... and a
file of class names. Digits are those of scikit-learn, photographs those of scikit-image (`pip
install scikit-image imageio`). Training and validation share neither a digit nor a piece of a
photograph: they take other digits, and other halves of each photograph.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from services.errors import InvalidInputError, NotFoundError
from services.pictures import ByteArray, put_picture
from services.plan.draws import check_seed, hash_key
from services.types import MaskArray
from trainers.program import program

logger = logging.getLogger(__name__)

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "grass", "gravel", "brick")
SPLITS = ("training", "validation")

_BACKDROP = (1.0, 2.5)  # side of the piece of a photograph, relative to the scene's
_DIGIT = (0.7, 1.0)  # side of a digit, relative to the scene's
_DEGREES = 25.0
_INK = 0.5  # share of a pixel that a digit must cover to own it
_DIMMED = 0.5  # of a photograph's brightness is left, so that light digits stand out
_DARKEST, _LIGHTEST = 150, 255  # levels of a digit's colour
_TRIES = 20

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ScenesConfig:
    """Write pictures of digits on photographs, with their masks."""

    out: Path = Path("scenes")
    """Folder to write to."""
    training: int = 160
    """Pictures of the training split (count)."""
    validation: int = 200
    """Pictures of the validation split (count)."""
    side: int = 64
    """Side of a picture, pixels."""
    digits: int = 5
    """Different digits (count, 2 to 10), from 0 on: the classes, beside the background."""
    most_digits: int = 2
    """Digits on a picture, at most (count); at least one."""
    seed: int = 0
    """Seed of everything that is drawn."""

    def __post_init__(self) -> None:
        for name, least in (("training", 1), ("validation", 1), ("side", 16), ("most_digits", 1)):
            if getattr(self, name) < least:
                raise InvalidInputError(
                    f"{name} is {getattr(self, name)}, expected {least} or more: no scene could be"
                    " made"
                )
        check_seed("seed", self.seed)
        if not 2 <= self.digits <= 10:
            raise InvalidInputError(f"digits is {self.digits}, expected 2 to 10: there are ten")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the values of a mask."""
        return ("background", *map(str, range(self.digits)))


def write_scenes(config: ScenesConfig) -> Path:
    """Write the folder; files that stand with the same content are left alone. Returns it.

    Raises NotFoundError without scikit-image.
    """
    digits, labels = _digits()
    photographs = _photographs()
    for number, split in enumerate(SPLITS):
        # Every third digit, and the right half of each photograph, is kept for validation.
        kept = (np.arange(len(labels)) % 3 == 2) == (number == 1)
        own = np.flatnonzero(kept & (labels < config.digits))
        halves = [np.array_split(photo, 2, axis=1)[number] for photo in photographs]
        for index in range(getattr(config, split)):
            rng = np.random.default_rng(hash_key("scene", config.seed, split, index))
            picture, mask = _scene(rng, config, halves, digits[own], labels[own])
            for kind, pixels in (("images", picture), ("annotations", mask)):
                path = config.out / kind / split / "scenes" / f"{index:05d}.png"
                put_picture(path, Image.fromarray(pixels))
    (config.out / "annotations" / "classes.txt").write_text("\n".join(config.classes) + "\n")
    return config.out


def _digits() -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """(N, 8, 8) ink from 0 to 1, and (N,) which digit it is."""
    from sklearn.datasets import load_digits  # slow to import, and needed here alone

    found = load_digits()
    return (found.images / 16).astype(np.float32), found.target.astype(np.int64)


def _photographs() -> list[ByteArray]:
    try:
        from skimage import data

        found = [np.asarray(getattr(data, name)()) for name in PHOTOGRAPHS]
    except ImportError as error:
        raise NotFoundError(
            f"scikit-image, whose photographs the scenes stand on, is not there ({error}): "
            "pip install scikit-image imageio"
        ) from error
    return [photo if photo.ndim == 3 else np.repeat(photo[..., None], 3, 2) for photo in found]


def _scene(
    rng: np.random.Generator,
    config: ScenesConfig,
    photographs: Sequence[ByteArray],
    digits: FloatArray,
    labels: npt.NDArray[np.int64],
) -> tuple[ByteArray, MaskArray]:
    """(S, S, 3) picture, and (S, S) classes."""
    side = config.side
    photograph = photographs[int(rng.integers(len(photographs)))]
    picture = _DIMMED * _backdrop(rng, photograph, side).astype(np.float32)
    mask = np.zeros((side, side), np.uint8)
    for _ in range(int(rng.integers(1, config.most_digits + 1))):
        which = int(rng.integers(len(labels)))
        ink = _ink(rng, digits[which], side)
        for _ in range(_TRIES):
            y, x = (int(rng.integers(0, side - length + 1)) for length in ink.shape)
            place = slice(y, y + ink.shape[0]), slice(x, x + ink.shape[1])
            if not (mask[place] * (ink > 0)).any():  # digits do not cover each other
                colour = rng.uniform(_DARKEST, _LIGHTEST, 3).astype(np.float32)
                picture[place] += ink[..., None] * (colour - picture[place])
                mask[place][ink >= _INK] = labels[which] + 1
                break
    return picture.round().clip(0, 255).astype(np.uint8), mask


def _backdrop(rng: np.random.Generator, photograph: ByteArray, side: int) -> ByteArray:
    length = min(int(side * rng.uniform(*_BACKDROP)), *photograph.shape[:2])
    y, x = (int(rng.integers(0, size - length + 1)) for size in photograph.shape[:2])
    piece = Image.fromarray(photograph[y : y + length, x : x + length])
    return np.asarray(piece.resize((side, side), Image.Resampling.BICUBIC))


def _ink(rng: np.random.Generator, digit: FloatArray, side: int) -> FloatArray:
    """A digit enlarged, turned, and cut to its own extent: shares of pixels that it covers."""
    length = int(side * rng.uniform(*_DIGIT))
    sheet = Image.fromarray(np.pad(digit, 2)).resize((length, length), Image.Resampling.BICUBIC)
    turned = sheet.rotate(rng.uniform(-_DEGREES, _DEGREES), Image.Resampling.BICUBIC)
    # Sharpened: enlarged strokes would else end in a blur wider than they are.
    ink = np.clip((np.asarray(turned, np.float32) - 0.25) * 3, 0, 1)
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    kept: FloatArray = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return kept


def main(argv: Sequence[str] | None = None) -> int:
    """Write the scenes that a command line asks for: 0, or 2 after an error of ours."""
    return program(ScenesConfig, _write, argv)


def _write(config: ScenesConfig) -> None:
    folder = write_scenes(config)
    logger.info("%d + %d scenes in %s", config.training, config.validation, folder)


if __name__ == "__main__":
    raise SystemExit(main())
