"""Folders that somebody else filled: each place below them once, and files that are files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from typing import NoReturn

from services.errors import InvalidInputError


def walk(root: str | Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`: a folder, its folders (sorted; those taken out are not entered), its files.

    Links are followed, and each folder is given once: one may lead back to a folder above it.
    Raises: InvalidInputError for a folder that cannot be listed, which would else seem empty.
    """
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(root, followlinks=True, onerror=_refuse):
        try:
            stat = os.stat(place)
        except OSError as error:
            _refuse(error)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders.sort()
        yield place, folders, files


def _refuse(error: OSError) -> NoReturn:
    raise InvalidInputError(
        f"{error.filename} cannot be listed ({error.strerror}): what it holds would be missing "
        "without a word; let it be read, or take it out of the folder"
    ) from error


def read_file(path: str | Path, most: int | None = None) -> bytes:
    """The bytes of a file, at most `most` of them.

    Raises: InvalidInputError where it cannot be read, is larger, or is a pipe or a device: these
    would be waited for, or read, for ever.
    """
    check_file(path, most)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error}); skip or replace it") from error


def check_file(path: str | Path, most: int | None = None) -> None:
    """What `read_file` asks of a file before it opens it."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError) as error:  # a name with a zero byte
        raise InvalidInputError(f"{path}: cannot be read ({error}); skip or replace it") from error
    if not S_ISREG(stat.st_mode):
        raise InvalidInputError(
            f"{path}: not a file but a folder, a pipe or a device: it was not read; remove it"
        )
    if most is not None and stat.st_size > most:
        raise InvalidInputError(
            f"{path}: {stat.st_size} bytes, more than {most}: it was not read; shrink or skip it"
        )
