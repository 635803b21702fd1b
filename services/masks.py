"""Masks of pictures, a class for each pixel: finding, reading, and the form in which they stand.

Pictures and masks are two folders laid out alike: the mask of `images/training/a.jpg` is
`annotations/training/a.png`. ADE-20k is laid out so as it ships.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from services.errors import FormatError, InvalidInputError, NotFoundError
from services.folders import read_file, walk
from services.pictures import (
    DAMAGE,
    EXTENSIONS,
    MAX_PIXELS,
    Picture,
    damage,
    is_picture,
    picture_size,
)
from services.types import IGNORED, UNLABELLED, MaskArray

MAX_CLASSES = IGNORED
"""Most classes of a mask: a stored pixel is one byte, and 255 says that it has no class."""

_LOSSLESS = frozenset({".png", ".bmp", ".gif", ".tif", ".tiff"})
_DECODERS = ("PNG", "BMP", "GIF", "TIFF")
_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # one channel of whole numbers
_VALUES = 1 << 16  # that a pixel of a mask file may have
_UNKNOWN = -1
_SPLITS = {
    "training": "train",
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}
_TABLES = ("objectInfo150.txt", "classes.txt")
_NAMED = 5  # files that a message lists
_SAMPLED = 16  # pairs of a split that are read before a job begins


class MaskClasses(NamedTuple):
    """names: of class i. table: (65536,) int16, class of a pixel value, 255 none, -1 unknown."""

    names: tuple[str, ...]
    table: npt.NDArray[np.int16]


class MaskedFolder(NamedTuple):
    """splits: as `services.pictures.list_pictures` gives them, unlabelled. masks: file by key."""

    classes: MaskClasses
    splits: dict[str, list[Picture]]
    masks: Mapping[str, Path]


def list_masked(images: str | Path, masks: str | Path, classes: str | Path = "") -> MaskedFolder:
    """Pictures below `images`, each with its mask at the same place below `masks`.

    The folders `training` (or `train`), `validation` (`val`) and `test` are splits; without them
    all is the split "train". Keys are paths relative to `images`. classes: see `read_classes`.

    Raises `NotFoundError` for a folder or file that is missing; `InvalidInputError`, naming files,
    where a picture has no mask, a lossy one, or several.
    """
    pictures, others = Path(images), Path(masks)
    for folder, what in ((pictures, "pictures"), (others, "masks")):
        if not folder.is_dir():
            raise NotFoundError(f"no folder {folder}: nothing to read; give the folder of {what}")
    known = read_classes(others, classes)
    splits: dict[str, list[Picture]] = {}
    inner = {name: split for name, split in _SPLITS.items() if (pictures / name).is_dir()}
    for name, split in inner.items() or {"": "train"}.items():
        if split in splits:
            raise InvalidInputError(
                f"{pictures} holds two folders for the split {split!r}, {name} among them: it is "
                "not clear which one is meant; rename one"
            )
        splits[split] = _pictures(pictures, pictures / name)
    found = _match([one for listed in splits.values() for one in listed], others)
    return MaskedFolder(known, splits, found)


def _pictures(root: Path, folder: Path) -> list[Picture]:
    paths = sorted(
        Path(place) / file for place, _, files in walk(folder) for file in files if is_picture(file)
    )
    if not paths:
        raise InvalidInputError(
            f"{folder} holds no picture ({', '.join(sorted(EXTENSIONS))}): there is nothing to "
            "train on; give the folder that holds them"
        )
    return [Picture(path, UNLABELLED, path.relative_to(root).as_posix()) for path in paths]


def _match(pictures: Sequence[Picture], folder: Path) -> dict[str, Path]:
    """The mask of each picture, by key."""
    by_place: dict[str, list[Path]] = {}
    for place, _, files in walk(folder):
        for file in files:
            if is_picture(file):
                path = Path(place) / file
                by_place.setdefault(_place(path.relative_to(folder)), []).append(path)
    found: dict[str, Path] = {}
    missing, lossy, several = list[str](), list[str](), list[str]()
    for picture in pictures:
        there = by_place.get(_place(Path(picture.key)), [])
        exact = [path for path in there if path.suffix.lower() in _LOSSLESS]
        if len(exact) == 1:
            found[picture.key] = exact[0]
        else:
            (several if exact else lossy if there else missing).append(picture.key)
    for faulty, what, remedy in (
        (missing, "have no mask", "add their masks, or take these pictures away"),
        (lossy, "have a lossy mask", "JPEG and WebP change class ids: save masks as PNG"),
        (several, "have more than one mask", "keep one file of each name"),
    ):
        if faulty:
            named = ", ".join(faulty[:_NAMED]) + (", ..." if len(faulty) > _NAMED else "")
            raise InvalidInputError(
                f"{len(faulty)} of {len(pictures)} pictures {what} below {folder}: {named}. "
                f"Nothing was read; a mask has its picture's path and name, and ends in "
                f"{', '.join(sorted(_LOSSLESS))}: {remedy}"
            )
    return found


def _place(path: Path) -> str:
    return path.with_suffix("").as_posix()


def read_classes(masks: str | Path, file: str | Path = "") -> MaskClasses:
    """The classes that pixel values of masks stand for.

    file: one name a line, for the values 0, 1, ...; or a table with the columns `Idx` and `Name`
    (tabs or commas), as ADE-20k's `objectInfo150.txt`, for the values that it lists. By default
    `objectInfo150.txt` or `classes.txt` in the folder of masks or beside it. The value 255 has no
    class, nor has 0 where a table does not list it.

    Raises `NotFoundError` where there is no such file, `InvalidInputError` for one that names no
    class, more than 255, one value twice, or values outside of 0..65535.
    """
    folder = Path(masks)
    places = [Path(file)] if file else [at / n for at in (folder, folder.parent) for n in _TABLES]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise NotFoundError(
            f"no file of class names ({', '.join(map(str, places))}): nobody could say which "
            "values of a mask are valid; write one name a line, for the values 0, 1, ..., or a "
            "table of Idx and Name, and give it as --mask-classes"
        )
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not UTF-8 text ({error}): save it as such") from error
    rows = _table(path, lines) or list(enumerate(line.strip() for line in lines))
    values = [value for value, _ in rows]
    wrong = [value for value in values if not 0 <= value < _VALUES or values.count(value) > 1]
    if not 1 <= len(rows) <= MAX_CLASSES or wrong:
        raise InvalidInputError(
            f"{path} names {len(rows)} classes"
            + (f", the value {wrong[0]} twice or outside of 0..{_VALUES - 1}" if wrong else "")
            + f": valid are 1 to {MAX_CLASSES} classes of different values; correct the file"
        )
    table = np.full(_VALUES, _UNKNOWN, np.int16)
    table[IGNORED] = IGNORED
    if rows[0][0] != 0:
        table[0] = IGNORED
    table[values] = np.arange(len(rows))
    return MaskClasses(tuple(name for _, name in rows), table)


def _table(path: Path, lines: list[str]) -> list[tuple[int, str]]:
    """(value, name) of each line of a table, in the order of values; [] if it is none."""
    mark = "\t" if lines and "\t" in lines[0] else ","
    header = [word.strip() for word in lines[0].split(mark)] if lines else []
    if not {"Idx", "Name"} <= set(header):
        return []
    found = []
    for number, row in enumerate(csv.reader(lines[1:], delimiter=mark), start=2):
        try:
            value, name = int(row[header.index("Idx")]), row[header.index("Name")].strip()
        except (ValueError, IndexError) as error:
            raise InvalidInputError(
                f"{path}, line {number}: {row} has no whole number as Idx and a Name: correct it"
            ) from error
        found.append((value, name))
    return sorted(found)


def read_mask(
    path: str | Path, picture: str | Path, height: int, width: int, classes: MaskClasses
) -> MaskArray:
    """The mask of a picture, (height, width) uint8: classes, and `IGNORED` where there is none.

    Resized by nearest neighbour, as its picture is, without keeping aspect.
    Raises `InvalidInputError`, with path and reason, for a file that is not a whole mask of one
    channel, has another size than its picture, or a value that is no class.
    """
    data = read_file(path)
    size, found = picture_size(picture), _decode(data, str(path), _DECODERS)
    if found.shape != size:
        raise InvalidInputError(
            f"{path}: the mask is {found.shape[0]}x{found.shape[1]} pixels (height x width), its "
            f"picture {size[0]}x{size[1]}: pixels would get another's class; skip or replace it"
        )
    mapped = classes.table[found]
    if mapped.min(initial=0) < 0:
        unknown = np.unique(found[mapped < 0])
        raise InvalidInputError(
            f"{path}: {int((mapped < 0).sum())} pixels have the value "
            f"{', '.join(map(str, unknown[:_NAMED].tolist()))}, which is no class: valid are "
            f"{_ranges(np.flatnonzero(classes.table >= 0))}; correct the mask, or the file of "
            "class names"
        )
    image = Image.fromarray(mapped.astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST))


def _decode(data: bytes, name: str, formats: tuple[str, ...]) -> npt.NDArray[np.uint16]:
    """(H, W) values of a one-channel file; palettes are class numbers, their colours are not."""
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            pixels, mode = image.width * image.height, image.mode
            if mode in _MODES and pixels <= MAX_PIXELS:
                values = np.asarray(image).astype(np.int64)
                if values.min(initial=0) >= 0 and values.max(initial=0) < _VALUES:
                    return values.astype(np.uint16)
                raise ValueError(f"values {values.min()} to {values.max()}")
    except DAMAGE as error:
        raise InvalidInputError(
            f"{name}: not a readable mask ({damage(error)}); skip or replace it"
        ) from error
    raise InvalidInputError(
        f"{name}: a mask of mode {mode} and {pixels} pixels: valid are one channel of class ids "
        f"(8 or 16 bits, or a palette) and at most {MAX_PIXELS} pixels; save it so, or skip it"
    )


def _ranges(values: npt.NDArray[np.intp]) -> str:
    """Rising whole numbers in words: 0..10, 255."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{r[0]}..{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs if len(r))


def check_sample(folder: MaskedFolder) -> None:
    """Read a few pairs of each split: `InvalidInputError` where half of them or more are faulty.

    So a wrong file of class names, or masks of another kind, are told within a second, not after
    the first shard.
    """
    for name, pictures in folder.splits.items():
        step = max(1, len(pictures) // _SAMPLED)
        sample, faults = pictures[::step][:_SAMPLED], []
        for one in sample:
            try:
                read_mask(folder.masks[one.key], one.path, 1, 1, folder.classes)
            except InvalidInputError as error:
                faults.append(str(error))
        if 2 * len(faults) >= len(sample):
            raise InvalidInputError(
                f"{len(faults)} of the first {len(sample)} masks that were tried in the split "
                f"{name!r} are faulty; the job did not start. {'; '.join(faults[:_NAMED])}"
            )


def encode_mask(mask: MaskArray) -> bytes:
    """(H, W) uint8 as a PNG file of 8-bit grey, without loss."""
    sink = io.BytesIO()
    Image.fromarray(mask).save(sink, "PNG", optimize=True)
    return sink.getvalue()


def decode_mask(data: bytes, height: int, width: int, name: str) -> MaskArray:
    """What `encode_mask` was given; `FormatError` for anything but a mask of that size."""
    try:
        found = _decode(data, name, ("PNG",))
    except InvalidInputError as error:
        raise FormatError(str(error)) from error
    if found.shape != (height, width) or found.max(initial=0) > IGNORED:
        raise FormatError(
            f"{name}: the mask is {found.shape[0]}x{found.shape[1]} pixels with values up to "
            f"{found.max(initial=0)}, expected {height}x{width} and at most {IGNORED}: write the "
            "dataset again"
        )
    return found.astype(np.uint8)
