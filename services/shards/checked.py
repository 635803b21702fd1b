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
    found = xxhash.xxh3_128_hexdigest(data)
    if (len(data), found) != (file.bytes, file.xxh3):
        raise IntegrityError(
            f"{folder.url}/{file.path}: {len(data)} bytes of xxh3 {found}, expected {file.bytes} "
            f"of {file.xxh3}: the file is damaged; restore it, or write it again and commit a new "
            "version"
        )
    return data
