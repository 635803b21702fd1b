"""ObjectNet as it ships: `images/FOLDER/picture.png` beside `mappings/`, which names its classes.

- `folder_to_objectnet_label.json`: {"alarm_clock": "Alarm clock"}
- `objectnet_to_imagenet_1k.json`: {"Alarm clock": "analog clock; digital clock"}, 113 of 313
- `imagenet_to_label_2012_v2`: such a label a line, in the order of ImageNet's 2012 numbers
- `pytorch_to_imagenet_2012_id.json`: {"0": 449}, the place of a class among the 1,000 sorted by
  folder name, and its 2012 number
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from services.errors import FormatError, InvalidInputError, NotFoundError
from trainers.evaluation import ClassMap

T = TypeVar("T")

_FOLDERS = "folder_to_objectnet_label.json"
_LABELS = "objectnet_to_imagenet_1k.json"
_LINES = "imagenet_to_label_2012_v2"
_NUMBERS = "pytorch_to_imagenet_2012_id.json"
_CLASSES = 1000
_BETWEEN = "; "


def locate(folder: str | Path) -> tuple[Path, Path | None]:
    """(folder of class/picture files, its `mappings` if they are there).

    folder: of the whole dataset, or the one of its pictures.
    """
    root = Path(folder)
    if (root / "images").is_dir() and (root / "mappings").is_dir():
        return root / "images", root / "mappings"
    beside = root.parent / "mappings"
    return root, beside if root.name == "images" and beside.is_dir() else None


def shipped_map(mappings: Path, known: Sequence[str]) -> ClassMap:
    """Which of the model's classes are right for each folder, by the files that ObjectNet ships.

    known: the model's classes, ImageNet-1k's in the order of their folder names.
    Raises: NotFoundError for a file that is missing; FormatError for one that cannot be read, or
    that names what another does not know; InvalidInputError for a model of other classes.
    """
    if len(known) != _CLASSES or list(known) != sorted(known):
        raise InvalidInputError(
            f"the model has {len(known)} classes ({known[0]!r}, ...), and {mappings} leads to the"
            f" {_CLASSES} of ImageNet-1k in the order of their folder names: no answer could be"
            " told right; give a class map of your own (--shifted.objectnet-classes)"
        )
    folders = _read(mappings / _FOLDERS, TypeAdapter(dict[str, str]))
    labels = _read(mappings / _LABELS, TypeAdapter(dict[str, str]))
    numbers = _read(mappings / _NUMBERS, TypeAdapter(dict[int, int]))
    lines = [line.strip() for line in _text(mappings / _LINES).splitlines()]
    first = min(numbers.values(), default=0)  # 2012 numbers count from 0 in some copies, from 1 in
    at_line = {number - first: place for place, number in numbers.items()}  # others
    try:
        name = {line: known[at_line[number]] for number, line in enumerate(lines) if line}
        return {
            folder: [name[label] for label in labels[title].split(_BETWEEN)]
            for folder, title in folders.items()
            if title in labels
        }
    except (KeyError, IndexError) as error:
        raise FormatError(
            f"{mappings}: its files do not agree, {error} of one is not in another: nothing was"
            " evaluated; unpack ObjectNet's mappings again"
        ) from error


def _text(file: Path) -> str:
    if not file.is_file():
        raise NotFoundError(
            f"{file} is missing, which says what ObjectNet's folders show: unpack its mappings, or"
            " give a class map (--shifted.objectnet-classes)"
        )
    return file.read_text(encoding="utf-8", errors="replace")


def _read(file: Path, kind: TypeAdapter[T]) -> T:
    try:
        return kind.validate_json(_text(file))
    except ValidationError as error:
        raise FormatError(
            f"{file} is not the file that ObjectNet ships ({error}): unpack its mappings again"
        ) from error
