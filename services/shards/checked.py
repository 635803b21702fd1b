"""Files of a dataset, read and held against the size and checksum that its manifest names."""

from __future__ import annotations

from typing import Protocol

import xxhash

from services.errors import IntegrityError
from services.shards.store import Store


class NamedFile(Protocol):
    """What a manifest says of a file: `wire.Asset`, `wire.Shard` and `wire.Column` do."""

    path: str
    bytes: int
    xxh3: str


def read_checked(folder: Store, file: NamedFile) -> bytes:
    """The bytes of a file; IntegrityError if they are not those that the manifest names."""
    data = folder.read(file.path)
    _compare(folder, file, len(data), xxhash.xxh3_128_hexdigest(data))
    return data


def check_file(folder: Store, file: NamedFile) -> None:
    """IntegrityError as by `read_checked`; holds no more than a piece of a local file in memory."""
    _compare(folder, file, *folder.digest(file.path))


def _compare(folder: Store, file: NamedFile, size: int, xxh3: str) -> None:
    if (size, xxh3) != (file.bytes, file.xxh3):
        raise IntegrityError(
            f"{folder.url}/{file.path}: {size} bytes of xxh3 {xxh3}, expected {file.bytes} of "
            f"{file.xxh3}: the file is damaged; restore it, or write it again and commit a new "
            "version"
        )
