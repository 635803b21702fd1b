"""A folder of pictures without labels, nested in any way."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from services.errors import InvalidInputError, NotFoundError
from services.folders import read_file, walk
from services.pictures import EXTENSIONS, is_picture
from services.sources.fields import MAX_TEXT_BYTES, Fields
from services.sources.sample import Fault, Found, Sample, Unit, check_key, clean_key


class _Piece(NamedTuple):
    """Pictures [start, stop) of a folder, by name."""

    folder: str
    start: int
    stop: int


class PlainSource:
    """Pictures at any depth below a folder, in the order of folders and names.

    What is kept of them is their number in each folder, so a folder of any size is listed in
    little memory; a name is listed again by the job that reads it. See `PictureSource`.
    Captions stand beside the pictures: `a.txt`, or a field of `a.json`, for `a.jpg`.

    Raises: NotFoundError for no folder, InvalidInputError for one without a picture.
    """

    kind = "plain"
    classes: tuple[str, ...] = ()
    mask_classes = None
    files = 0
    unit: Unit = "pictures"

    def __init__(self, root: Path, rows: int, captions: str = "") -> None:
        """rows: pictures of a job."""
        if not root.is_dir():
            raise NotFoundError(f"no folder {root}: nothing to read; give the folder of pictures")
        self._root, self._fields, self.captions = root, Fields(captions), bool(captions)
        self._jobs = list(_packed(_counted(root), rows))
        if not self._jobs:
            raise InvalidInputError(
                f"{root} holds no picture ({', '.join(sorted(EXTENSIONS))}) at any depth: there "
                "is nothing to ingest; give the folder that holds them"
            )
        self.sizes = [sum(piece.stop - piece.start for piece in job) for job in self._jobs]

    def read(self, job: int) -> Iterator[Found]:
        for piece in self._jobs[job]:
            folder = self._root / piece.folder
            names = _pictures_in(folder)
            if len(names) < piece.stop:
                yield Fault(
                    piece.folder or ".",
                    f"{folder}: had {piece.stop} pictures or more when it was listed, has"
                    f" {len(names)}: someone changes it meanwhile",
                )
            for name in names[piece.start : piece.stop]:
                key = clean_key(os.path.join(piece.folder, name))
                wrong = check_key(key)
                if wrong is not None:
                    yield Fault(key, f"{key[:200]}: {wrong}")
                    continue
                yield Sample(key, folder / name, caption=self._caption(folder / name))

    def _caption(self, picture: Path) -> str:
        if not self.captions:
            return ""
        members = {}
        for extension in self._fields.extensions:
            beside = picture.with_suffix(f".{extension}")
            with contextlib.suppress(InvalidInputError):  # a caption that is missing, or damaged
                members[extension] = read_file(beside, MAX_TEXT_BYTES)
        return self._fields.caption(members)


def _pictures_in(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if is_picture(e.name) and e.is_file())
    except OSError:
        return []  # gone since it was listed, which its reader says


def _counted(root: Path) -> Iterator[tuple[str, int]]:
    """(folder relative to the root, pictures in it), in order; hidden folders are left out."""
    for place, folders, files in walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        count = sum(
            1 for name in files if is_picture(name) and os.path.isfile(os.path.join(place, name))
        )
        if count:
            relative = os.path.relpath(place, root)
            yield "" if relative == "." else relative, count


def _packed(folders: Iterator[tuple[str, int]], rows: int) -> Iterator[list[_Piece]]:
    """Jobs of `rows` pictures, the last of what is left."""
    job, room = list[_Piece](), rows
    for folder, count in folders:
        start = 0
        while start < count:
            stop = min(count, start + room)
            job.append(_Piece(folder, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield job
                job, room = [], rows
    if job:
        yield job
