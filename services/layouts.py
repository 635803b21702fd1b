"""Fine-grained datasets in the layouts that they ship in, found by the files that describe them.

- Oxford Flowers-102: `jpg/image_NNNNN.jpg`, `imagelabels.mat`, `setid.mat`. Its training and its
  validation part train together, 2,040 pictures, and its 6,149 test pictures validate, as in DeiT.
- Stanford Cars: `cars_train/`, `cars_test/`, `devkit/cars_train_annos.mat`, and
  `cars_test_annos_withlabels.mat` there or beside it.
- iNaturalist 2018 and 2019: `train2018.json`, `val2018.json` (or 2019) in COCO's form, pictures
  below the folder as they name them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from services.errors import FormatError, InvalidInputError, NotFoundError

_INATURALIST = re.compile(r"train(20\d\d)\.json")
_LARGEST_BYTES = 2_000_000_000  # of a description: iNaturalist's training file has 120 MB


class Listed(NamedTuple):
    """classes: name of label i. splits: (path relative to the folder, label) of each picture."""

    classes: tuple[str, ...]
    splits: dict[str, list[tuple[str, int]]]


def find_layout(folder: Path) -> Listed | None:
    """What a folder's own description lists, None where there is no such description.

    Labels count from 0 in the order of the description's own numbers.
    Raises: NotFoundError for a description, or a first picture, that is missing; FormatError for
    one that cannot be read; InvalidInputError where it contradicts itself.
    """
    for described, read in _READERS.items():
        if all((folder / name).exists() for name in described):
            return _checked(folder, read(folder))
    if any(_INATURALIST.fullmatch(path.name) for path in folder.glob("train20*.json")):
        return _checked(folder, _inaturalist(folder))
    return None


def _checked(folder: Path, listed: Listed) -> Listed:
    seen: dict[str, str] = {}
    for split, pictures in listed.splits.items():
        if not pictures:
            raise InvalidInputError(
                f"{folder}: its description lists no picture for {split}; unpack it again"
            )
        for name, label in pictures:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise FormatError(
                    f"{folder}: its description names {name!r}, outside of the folder: nothing was"
                    " read; use the description that the dataset ships with"
                )
            if not 0 <= label < len(listed.classes):
                raise FormatError(
                    f"{folder}: {name!r} has label {label}, valid are 0..{len(listed.classes) - 1}"
                )
            if name in seen:
                raise InvalidInputError(
                    f"{folder}: {name!r} is listed twice, for {seen[name]} and for {split}: it"
                    " would count twice, or be trained and validated on; mend the description"
                )
            seen[name] = split
        first = folder / pictures[0][0]
        if not first.is_file():
            raise NotFoundError(
                f"{first} is missing, the first picture that the description of {folder} lists for"
                f" {split}: unpack the pictures beside it"
            )
    return listed


def _flowers(folder: Path) -> Listed:
    labels = _field(folder / "imagelabels.mat", "labels").reshape(-1)
    sets = folder / "setid.mat"
    count = int(labels.max(initial=0))
    splits: dict[str, list[tuple[str, int]]] = {"train": [], "validation": []}
    for split, name in (("train", "trnid"), ("train", "valid"), ("validation", "tstid")):
        numbers = _field(sets, name).reshape(-1)
        if len(numbers) and not 1 <= numbers.min() <= numbers.max() <= len(labels):
            raise FormatError(f"{sets}: {name} names pictures outside of 1..{len(labels)}")
        splits[split] += [(f"jpg/image_{n:05d}.jpg", int(labels[n - 1]) - 1) for n in numbers]
    return Listed(tuple(f"{number:03d}" for number in range(1, count + 1)), splits)


def _cars(folder: Path) -> Listed:
    devkit = folder / "devkit"
    test = "cars_test_annos_withlabels.mat"
    found = next((path for path in (devkit / test, folder / test) if path.is_file()), None)
    if found is None:
        raise NotFoundError(
            f"{folder} lacks {test}, in devkit or beside it: nothing says what its test pictures"
            " show; it is a download of its own"
        )
    names = _field(devkit / "cars_meta.mat", "class_names").reshape(-1)
    classes = tuple(str(np.asarray(name).reshape(-1)[0]) for name in names)

    def split(file: Path, place: str) -> list[tuple[str, int]]:
        entries = _field(file, "annotations").reshape(-1)
        if not {"fname", "class"} <= set(entries.dtype.names or ()):
            raise FormatError(f"{file}: its annotations lack fname or class")
        return [
            (f"{place}/{np.asarray(e['fname']).reshape(-1)[0]}", int(np.ravel(e["class"])[0]) - 1)
            for e in entries
        ]

    splits = {
        "train": split(devkit / "cars_train_annos.mat", "cars_train"),
        "validation": split(found, "cars_test"),
    }
    return Listed(classes, splits)


def _inaturalist(folder: Path) -> Listed:
    years = sorted(
        match[1] for path in folder.iterdir() if (match := _INATURALIST.fullmatch(path.name))
    )
    if len(years) > 1:
        raise InvalidInputError(
            f"{folder} holds descriptions of {', '.join(years)}: it is not clear which is meant;"
            " keep each year in a folder of its own"
        )
    described = {
        split: _json(folder / f"{name}{years[0]}.json")
        for split, name in (("train", "train"), ("validation", "val"))
    }
    try:
        known = {
            int(entry["id"]): str(entry["name"])
            for part in described.values()
            for entry in part["categories"]
        }
        label = {category: at for at, category in enumerate(sorted(known))}
        splits = {}
        for split, part in described.items():
            of_image = {int(e["image_id"]): int(e["category_id"]) for e in part["annotations"]}
            splits[split] = [
                (str(image["file_name"]), label[of_image[int(image["id"])]])
                for image in part["images"]
            ]
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{folder}: the description of {years[0]} is not in COCO's form with images,"
            f" annotations and categories that agree ({type(error).__name__}: {error})"
        ) from error
    return Listed(tuple(known[category] for category in sorted(known)), splits)


def _field(file: Path, name: str) -> Any:
    """One array of a MATLAB file, which holds data only."""
    from scipy.io import loadmat  # slow to import, and needed for these layouts alone

    _check_file(file)
    try:
        return loadmat(file)[name]
    except KeyError as error:
        raise FormatError(
            f"{file} holds no {name!r}: it is not the dataset's own file; download it again"
        ) from error
    except Exception as error:
        raise FormatError(
            f"{file} is not a readable MATLAB file ({type(error).__name__}: {error}): download it"
            " again"
        ) from error


def _json(file: Path) -> Mapping[str, Any]:
    _check_file(file)
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:  # brackets without end
        raise FormatError(f"{file} is not JSON ({error}): download it again") from error
    if not isinstance(found, dict):
        raise FormatError(f"{file} is not a JSON object: download it again")
    return found


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise NotFoundError(f"{file} is missing, which describes the pictures beside it")
    if file.stat().st_size > _LARGEST_BYTES:
        raise FormatError(f"{file} has {file.stat().st_size} bytes, more than {_LARGEST_BYTES}")


_READERS: Mapping[Sequence[str], Callable[[Path], Listed]] = {
    ("imagelabels.mat", "setid.mat"): _flowers,
    ("devkit/cars_train_annos.mat",): _cars,
}
