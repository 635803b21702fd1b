"""What a source of pictures gives, and the one protocol that all sources follow."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, TypeAlias

from services.folders import read_file
from services.masks import MaskClasses
from services.shards.store import Store
from services.types import UNLABELLED

MAX_PICTURE_BYTES = 1 << 28
"""Largest file of a picture that is read into memory: as large as its pixels may be."""

MAX_CAPTION_BYTES = 1 << 20
MAX_KEY_BYTES = 1024  # as a shard stores it

_CHUNK_BYTES = 1 << 23  # of one request, where files stand on an object store

Unit: TypeAlias = Literal["pictures", "bytes"]


@dataclass(frozen=True)
class Sample:
    """One picture.

    key: its name, unique within the source and the same whenever the source is read.
    picture: the bytes of its file, or where the file lies. label: `UNLABELLED` where it has none.
    split: where it belongs; "" leaves that to the picture's content.
    caption: "" where it has none. mask: file of its mask, where the source has masks.
    """

    key: str
    picture: bytes | Path
    label: int = UNLABELLED
    split: str = ""
    caption: str = ""
    mask: Path | None = None

    def load(self) -> bytes:
        """The bytes of its file; InvalidInputError where it cannot be read or is too large."""
        if isinstance(self.picture, bytes):
            return self.picture
        return read_file(self.picture, MAX_PICTURE_BYTES)


@dataclass(frozen=True)
class Fault:
    """Something that should be a picture and cannot be read.

    path: of the picture, or of the file that should hold it. file: whether it is the file that is
    damaged, so that pictures are lost whose number nobody knows.
    """

    path: str
    reason: str
    file: bool = False


@dataclass(frozen=True)
class Absent:
    """A sample without a picture: a URL that was never fetched, a text alone. No damage."""

    key: str


Found: TypeAlias = Sample | Fault | Absent


class PictureSource(Protocol):
    """Pictures in jobs that can be read apart from each other, and any number of times alike.

    kind: as in `seit ingest --source`. classes: names of the labels, or of the masks' classes.
    mask_classes: what pixels of masks mean, None where there are no masks. captions: whether
    samples were read with their captions. files: archives, 0 where pictures are files themselves.
    sizes: of each job, in `unit`. Picklable: actors on other nodes read from it.
    """

    @property
    def kind(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def mask_classes(self) -> MaskClasses | None: ...

    @property
    def captions(self) -> bool: ...

    @property
    def files(self) -> int: ...

    @property
    def sizes(self) -> Sequence[int]: ...

    @property
    def unit(self) -> Unit: ...

    def read(self, job: int) -> Iterator[Found]:
        """What a job holds, in its order, a picture in memory at a time."""
        ...


def too_large(name: str, size: int) -> str:
    """Why a picture of so many bytes is not read."""
    return (
        f"{name}: a picture of {size} bytes, more than {MAX_PICTURE_BYTES}: it was not read; "
        "shrink or skip it"
    )


def clean_key(key: str) -> str:
    """A key as text that UTF-8 can hold: bytes of a name that are none are written \\xNN."""
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def check_key(key: str) -> str | None:
    """What is wrong with a key, None if nothing is."""
    size = len(key.encode())
    if not 1 <= size <= MAX_KEY_BYTES:
        return f"its name has {size} bytes, valid are 1 to {MAX_KEY_BYTES}; rename it"
    return None


def clean_caption(value: bytes | str) -> str:
    """A caption as text: bytes that are no UTF-8 become U+FFFD, "" where it is overlong."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    data = text.encode("utf-8", "replace")
    return data.decode().strip() if len(data) <= MAX_CAPTION_BYTES else ""


def open_file(store: Store, path: str, size: int) -> BinaryIO:
    """A file of a store to read and seek in, wherever it stands; a few MiB of it in memory."""
    local = store.local_path(path)
    if local is not None:
        return open(local, "rb")
    return io.BufferedReader(_Ranged(store, path, size), _CHUNK_BYTES)


class _Ranged(io.RawIOBase):
    """A file of an object store, read by ranges, each with the store's retries."""

    def __init__(self, store: Store, path: str, size: int) -> None:
        self._store, self._path, self._size, self._at = store, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = min(len(buffer), max(0, self._size - self._at))
        data = self._store.read_range(self._path, self._at, wanted) if wanted else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
