"""Small pictures whose class is an outline: any tint, any place, turned and mirrored at will.

Nothing that the paper's augmentations change says what class a picture is of, as with most
photographs of things, and unlike digits (which a mirror changes) and textures (which colours tell
apart). Nothing is needed but numpy and Pillow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from services.errors import InvalidInputError
from services.pictures import ByteArray, put_picture
from services.plan.draws import hash_key

FloatArray = npt.NDArray[np.float64]

_FINE = 4  # an outline is drawn this many times larger, and averaged down
_SIZES = (0.55, 0.9)  # diameter of an outline, relative to the picture's side
_GREYS = (30.0, 225.0)  # levels that a colour lies around
_CONTRAST = 70.0  # levels by which those of shape and ground differ, at least
_TINT = 30.0  # levels by which a channel departs from them
_MOTTLE = 20.0  # levels of the noise on either
_MOTTLES = (3, 9)  # patches of that noise along a side


def _ring(radius: float, count: int = 48, start: float = 0.0, end: float = 1.0) -> FloatArray:
    """(count, 2) points of an arc from `start` to `end` turns, both included but of a circle."""
    turns = np.linspace(start, end, count, endpoint=end - start < 1)
    return radius * np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], 1)


def _star() -> FloatArray:
    points = _ring(1.0, 10)
    points[1::2] *= 0.42
    return points


def _crescent() -> FloatArray:
    outer = _ring(1.0, 40, 0.15, 0.85)
    centre = np.array([0.5, 0.0])  # of the circle that cuts
    x, y = outer[0] - centre  # of the tip, seen from there
    angle = float(np.arctan2(y, x)) / (2 * np.pi)
    inner = _ring(float(np.hypot(x, y)), 40, angle, 1 - angle) + centre
    return np.concatenate([outer, inner[::-1]])


def _cross() -> FloatArray:
    arm, width = 1.0, 0.3
    corner = [(arm, -width), (arm, width), (width, width)]
    return np.concatenate([np.array(corner) @ _turn(quarter / 4) for quarter in range(4)])


def _turn(turns: float) -> FloatArray:
    """(2, 2), by which a row of points is multiplied."""
    cos, sin = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
    return np.array([[cos, sin], [-sin, cos]])


_ARROW = np.array(
    [(1, 0), (0.1, 0.8), (0.1, 0.3), (-0.95, 0.3), (-0.95, -0.3), (0.1, -0.3), (0.1, -0.8)]
)
OUTLINES: dict[str, Sequence[FloatArray]] = {
    "arrow": (_ARROW,),
    "crescent": (_crescent(),),
    "cross": (_cross(),),
    "disc": (_ring(0.9),),
    "ring": (_ring(0.95), _ring(0.5)),
    "square": (_ring(1.0, 4),),
    "star": (_star(),),
    "triangle": (_ring(1.0, 3),),
}
"""Classes: a polygon in the circle of radius 1, and one that is cut out of it where there is."""


def write_shapes(
    folder: str | Path, *, side: int = 64, train: int = 600, validation: int = 100, seed: int = 0
) -> Path:
    """`train/CLASS/NNNN.png` and `val/CLASS/NNNN.png`, pictures of `side` pixels.

    train, validation: pictures of each class. The same arguments give the same files; those that
    stand with the same content are left alone. Returns the folder.

    Raises: InvalidInputError where a number is below 1, or a side below 16.
    """
    if min(train, validation) < 1 or side < 16:
        raise InvalidInputError(
            f"side {side}, train {train}, validation {validation}: expected a side of 16 or more,"
            " which an outline needs, and at least one picture"
        )
    root = Path(folder)
    for split, count in (("train", train), ("val", validation)):
        for name in OUTLINES:
            for number in range(count):
                rng = np.random.default_rng(hash_key("shape", seed, split, name, number))
                path = root / split / name / f"{number:04d}.png"
                put_picture(path, Image.fromarray(_picture(rng, name, side)))
    return root


def _picture(rng: np.random.Generator, name: str, side: int) -> ByteArray:
    """(side, side, 3)."""
    greys = rng.uniform(*_GREYS, 2)
    while abs(greys[0] - greys[1]) < _CONTRAST:
        greys = rng.uniform(*_GREYS, 2)
    tints = rng.uniform(-_TINT, _TINT, (2, 3))
    ground, shape = (
        grey + tint + _mottle(rng, side) for grey, tint in zip(greys, tints, strict=True)
    )
    covered = _covered(rng, name, side)[..., None]
    picture: FloatArray = ground + covered * (shape - ground)
    return picture.round().clip(0, 255).astype(np.uint8)


def _mottle(rng: np.random.Generator, side: int) -> FloatArray:
    """(side, side, 1) smooth noise."""
    patches = int(rng.integers(*_MOTTLES, endpoint=True))
    coarse = rng.normal(0, 1, (patches, patches)).astype(np.float32)
    fine = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    return _MOTTLE * np.asarray(fine, np.float64)[..., None]


def _covered(rng: np.random.Generator, name: str, side: int) -> FloatArray:
    """(side, side), the share of each pixel that the outline covers."""
    radius = side * rng.uniform(*_SIZES) / 2
    centre = rng.uniform(radius, side - radius, 2)
    turn = _turn(rng.uniform()) * (1, rng.choice((-1, 1)))
    sheet = Image.new("L", (side * _FINE, side * _FINE))
    draw = ImageDraw.Draw(sheet)
    for level, outline in zip((255, 0), OUTLINES[name], strict=False):
        points = (outline @ turn * radius + centre) * _FINE
        draw.polygon([tuple(point) for point in points.tolist()], fill=level)
    fine = np.asarray(sheet, np.float64).reshape(side, _FINE, side, _FINE)
    found: FloatArray = fine.mean((1, 3)) / 255
    return found
