"""Pictures on disk: finding, splitting and reading them.

A folder of pictures is `class/picture.jpg`, or `train/class/picture.jpg` beside
`val/class/picture.jpg` (or `validation`, or `test`), or a fine-grained dataset as it ships
(`services.layouts`).
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from services.errors import InvalidInputError, NotFoundError
from services.folders import check_file, read_file, replaced, walk
from services.layouts import find_layout

ByteArray = npt.NDArray[np.uint8]

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
MAX_PIXELS = 89_478_485
"""Most pixels that a picture may claim: 256 MiB as RGB. More is taken for a decompression bomb."""

MAX_UNREADABLE_SHARE = 0.01
"""Share of unreadable pictures past which whoever reads them stops: the folder is not what it
seems."""

# Pillow knows decoders that start other programs (EPS runs Ghostscript): only these are asked.
_DECODERS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow's decoders raise on damaged data."""

_TRAIN = "train"
_VALIDATION_NAMES = ("val", "validation", "test")


class Picture(NamedTuple):
    """One picture file: where it lies, its class, and its path relative to the folder listed."""

    path: Path
    label: int
    key: str


class PictureFolder(NamedTuple):
    """classes: name of label i. splits: "train", and "validation" and "test" where they stand."""

    classes: tuple[str, ...]
    splits: dict[str, list[Picture]]


def list_pictures(folder: str | Path) -> PictureFolder:
    """All pictures of a folder in a fixed order (by class, then path); classes sorted by name.

    A plain folder of classes is the one split "train". In the other layout the first of `val`,
    `validation`, `test` that exists is "validation", and a `test` beside it is "test".

    A dataset that brings its own description (`services.layouts`) is listed by that.

    Raises `NotFoundError` where the folder is missing, and `InvalidInputError` where it holds no
    class, a class is empty, or a class of another split is not one of the training classes.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotFoundError(
            f"no folder {root}: nothing to read; give a folder of class/picture files"
        )
    if (listed := find_layout(root)) is not None:
        splits = {
            name: [Picture(root / key, label, key) for key, label in sorted(found, key=_by_class)]
            for name, found in listed.splits.items()
        }
        return PictureFolder(listed.classes, splits)
    train = root / _TRAIN
    # A class may be called "train": then its pictures lie directly in it.
    if not train.is_dir() or not _subfolders(train) or _has_pictures(train):
        classes = _classes(root)
        return PictureFolder(classes, {_TRAIN: _pictures(root, root, classes)})
    classes = _classes(train)
    splits = {_TRAIN: _pictures(root, train, classes)}
    others = [root / name for name in _VALIDATION_NAMES if (root / name).is_dir()]
    for name, place in zip(("validation", "test"), others, strict=False):
        if name == "test" and place.name != "test":
            raise InvalidInputError(
                f"{root} holds both {others[0].name} and {place.name}: it is not clear which is "
                "the validation split; rename one of them"
            )
        strange = sorted(set(_classes(place)) - set(classes))
        if strange:
            raise InvalidInputError(
                f"{place} holds the class {strange[0]!r}, which {train} lacks: its pictures "
                "have no label; use the same class folders in both"
            )
        splits[name] = _pictures(root, place, classes)
    return PictureFolder(classes, splits)


def _by_class(listed: tuple[str, int]) -> tuple[int, str]:
    key, label = listed
    return label, key


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    )


def is_picture(name: str) -> bool:
    """Whether a file of that name counts as a picture."""
    return not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS


def _has_pictures(folder: Path) -> bool:
    return any(is_picture(name) for name in os.listdir(folder))


def _classes(folder: Path) -> tuple[str, ...]:
    classes = tuple(_subfolders(folder))
    if not classes:
        raise InvalidInputError(
            f"{folder} holds no class folder: pictures get their label from the folder they are "
            "in; move them to class/picture files, or take them without labels, which needs no "
            "such folders (seit ingest --source plain)"
        )
    return classes


def _pictures(root: Path, folder: Path, classes: Sequence[str]) -> list[Picture]:
    """Pictures of `folder`/class, at any depth below a class; keys are relative to `root`."""
    found: list[Picture] = []
    for label, name in enumerate(classes):
        if not (folder / name).is_dir():
            continue  # a split other than training may lack a class
        paths = sorted(
            Path(place) / file
            for place, _, files in walk(folder / name)
            for file in files
            if is_picture(file)
        )
        if not paths:
            raise InvalidInputError(
                f"the class folder {folder / name} holds no picture "
                f"({', '.join(sorted(EXTENSIONS))}): its label would never occur; fill it or "
                "remove it"
            )
        found += [Picture(path, label, path.relative_to(root).as_posix()) for path in paths]
    return found


def split(
    pictures: Sequence[Picture], validation_fraction: float, seed: int
) -> tuple[list[Picture], list[Picture]]:
    """(training, validation) pictures, each in the order given, with every class in proportion.

    Which pictures of a class go to validation depends on the hash of (seed, key) alone, so not on
    where the folder lies or how it was listed. A class of two or more pictures gives at least one
    to each side (unless `validation_fraction` is 0), a class of one trains.

    Raises `InvalidInputError` unless 0 <= validation_fraction < 1.
    """
    if not 0 <= validation_fraction < 1:
        raise InvalidInputError(
            f"validation_fraction={validation_fraction} is outside [0, 1): nothing would be left "
            "to train on; a usual value is 0.1"
        )
    by_label: dict[int, list[str]] = defaultdict(list)
    for picture in pictures:
        by_label[picture.label].append(picture.key)
    chosen: set[str] = set()
    for keys in by_label.values():
        keys.sort(key=lambda key: (_order(seed, key), key))
        wanted = max(1, round(len(keys) * validation_fraction)) if validation_fraction else 0
        chosen.update(keys[: min(wanted, len(keys) - 1)])
    training = [picture for picture in pictures if picture.key not in chosen]
    return training, [picture for picture in pictures if picture.key in chosen]


def _order(seed: int, key: str) -> bytes:
    # File names need not be valid UTF-8: os.fsencode gives back their bytes.
    return hashlib.blake2b(f"{seed}/".encode() + os.fsencode(key), digest_size=16).digest()


def damage(error: Exception) -> str:
    """What was wrong with a picture's bytes, in words that are the same each time."""
    if isinstance(error, UnidentifiedImageError):  # its own words hold an address in memory
        return "no picture of a known format"
    return f"{type(error).__name__}: {error}"


def picture_size(path: str | Path) -> tuple[int, int]:
    """(height, width) in pixels, from the file's header. Raises `InvalidInputError`."""
    check_file(path)
    try:
        with Image.open(path, formats=_DECODERS) as image:
            return image.height, image.width
    except DAMAGE as error:
        raise InvalidInputError(
            f"{path}: not a readable picture ({damage(error)}); skip or replace it"
        ) from error


def source_bytes(path: str | Path) -> int:
    """Size of a picture's file in bytes."""
    return Path(path).stat().st_size


def read_picture(path: str | Path, height: int, width: int, border: int = 0) -> ByteArray:
    """The picture as RGB, (3, height, width) uint8, resized bicubically without keeping aspect.

    border: pixels to cut off each side before.
    Raises `InvalidInputError`, with path and reason, where it cannot be read (see
    `decode_picture`).
    """
    return decode_picture(read_file(path), str(path), height, width, border)


def open_picture(path: str | Path) -> Image.Image:
    """The picture in its own size, as RGB, or as 8-bit grey where its file is grey.

    Raises `InvalidInputError` as `read_picture`.
    """
    with _opened(read_file(path), str(path)) as image:
        grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
        return _to_rgb(image).convert("L") if grey else _to_rgb(image)


def check_unreadable(
    reasons: Sequence[str],
    total: int,
    which: str,
    then: str,
    *,
    count: int | None = None,
    share: float | None = None,
) -> None:
    """InvalidInputError where more than the `share` of `total` could not be read.

    reasons: of such pictures, the first ones. count: how many there are, as many as reasons by
    default. share: `MAX_UNREADABLE_SHARE` by default. which: what the pictures are called, then:
    what follows.
    """
    count = len(reasons) if count is None else count
    share = MAX_UNREADABLE_SHARE if share is None else share
    if count > share * total:
        raise InvalidInputError(
            f"{count} of {total} {which} cannot be read, more than"
            f" {100 * share:.3g}%; {then}. The first: {'; '.join(reasons[:5])}. Repair or"
            " remove them, or look whether the folder is the right one"
        )


def decode_picture(data: bytes, name: str, height: int, width: int, border: int = 0) -> ByteArray:
    """A picture file's bytes as RGB, (3, height, width) uint8; `name` is for messages.

    The first frame of an animation; 16-bit grey is scaled to 8 bits; transparency is dropped.
    Raises `InvalidInputError` for anything that is not a whole picture of a known format, holds
    floating-point pixels, whose range nothing says, or claims more than `MAX_PIXELS` pixels, its
    own or made `width` wide.
    """
    with _opened(data, name, width) as image:
        inside = (border, border, image.width - border, image.height - border)
        rgb = _to_rgb(image).crop(inside) if border else _to_rgb(image)
        rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
        return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))


@contextmanager
def _opened(data: bytes, name: str, width: int = 1) -> Iterator[Image.Image]:
    """The picture of a file's bytes; damage that shows inside the context is named, too.

    width: that it is brought to, before its height is: a column of pixels, which costs a file
    nothing, would take so many times its memory.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_DECODERS) as image:
            pixels = max(image.width, width) * image.height
            claimed = f"{image.width}x{image.height}"
            if pixels <= MAX_PIXELS:
                yield image
                return
    except DAMAGE as error:
        raise InvalidInputError(
            f"{name}: not a readable picture ({damage(error)}); skip or replace it"
        ) from error
    raise InvalidInputError(
        f"{name}: claims {claimed}, which made at least {width} wide are {pixels} pixels, more than"
        f" {MAX_PIXELS}: refused as a decompression bomb; shrink or skip it"
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips it to white
        grey = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":  # Pillow's own conversion cuts at 0 and 255: what ends at 1 goes black
        raise ValueError("floating-point pixels, of a range that nothing says: save 8 or 16 bits")
    return image.convert("RGB")


def write_digits(folder: str | Path, size: int = 32) -> Path:
    """Scikit-learn's 1797 handwritten digits as PNG files `class/NNNN.png`, size x size pixels.

    The 8x8 originals are enlarged bicubically. Files that stand already with the same content
    are left alone, so it may be called again. Returns the folder.

    Raises `InvalidInputError` where size < 1.
    """
    if size < 1:
        raise InvalidInputError(f"size={size} pixels: must be at least 1")
    from sklearn.datasets import load_digits  # slow to import, and needed here alone

    root = Path(folder)
    digits = load_digits()
    for index, (grey, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        image = Image.fromarray((grey * (255 / 16)).round().astype(np.uint8))
        resized = image.resize((size, size), Image.Resampling.BICUBIC)
        put_picture(root / str(label) / f"{index:04d}.png", resized)
    return root


def put_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG file as a whole or not at all; one with the same content is left alone.

    Raises: StoreError where it cannot be written.
    """
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    if path.is_file() and path.read_bytes() == encoded.getvalue():
        return
    with replaced(path) as part:
        part.write_bytes(encoded.getvalue())
