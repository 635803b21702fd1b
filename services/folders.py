"""Folders that others use: each place in them once, files that are files, a process at a time, and
what is written whole or not there."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import NoReturn

from services.errors import InvalidInputError, StoreError


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


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name what could not be written: the system's own error for a full disk names no file.

    Raises: StoreError for each OSError inside.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror or error}): nothing new is there; free"
            " space, let the folder be written to, or name another place"
        ) from error


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Where to write a file that stands at `path` after a clean end, and nowhere after an error.

    Its folder is made. Raises: as `writing`; what stood at `path` stands then.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def alone(folder: Path, taken: str, seconds: float = 0.0) -> Iterator[bool]:
    """Make the folder, and keep out of it who asks for the same, as long as this process lives.

    Gives whether they are kept out: on a file system without locks nobody is.
    taken: what is said where another one is there, and stays longer than `seconds`.
    Raises: StoreError then, and where there can be no such folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise StoreError(
            f"{folder} is no folder that could be written to ({error}): nothing was written; give"
            " another"
        ) from error
    try:
        yield _lock(handle, taken, seconds)
    finally:
        with suppress(OSError):  # where there are no locks
            fcntl.flock(handle, fcntl.LOCK_UN)  # a process that was forked has a copy of it
        os.close(handle)


def _lock(handle: int, taken: str, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError as error:
            if time.monotonic() > end:
                raise StoreError(taken) from error
        except OSError:
            return False  # no locks here
        time.sleep(seconds / 100)
