"""A decoded shard as one file that is mapped into memory: any row is one copy away.

The file is `HEADER`, then ids, labels, source_bytes, key offsets and key bytes, each padded to 64
bytes. Ids are laid down as uint16 (uint8 where K <= 256): gathering rows of 1024 tokens from a
byte plane through a table of ranks runs at 0.25-0.5 million rows/s on one core, from uint16 at
4.5 million, for twice the disk.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from services.errors import FormatError, InvalidInputError
from services.grids import cut
from services.shards.shard_rows import ShardRows
from services.types import IdArray, IntArray
from services.wire.seit import v1 as wire

_MAGIC = b"SEITROWS"
_FORMAT = 1
# magic, format, rows, grid height, grid width, bytes of an id, bytes of all keys (of the last
# part), xxh3-128 of the payload; the xxh3-64 of these fields follows
_HEADER = struct.Struct("<8sIQIIIQ16s")
_PAYLOAD_START = 128
_ALIGN = 64

Lengths: TypeAlias = Callable[[int], tuple[int, ...]]


def _padded(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _sizes(rows: int, tokens: int, id_bytes: int, key_bytes: int) -> tuple[int, ...]:
    """Bytes of ids, labels, source_bytes, key offsets and key bytes."""
    return rows * tokens * id_bytes, rows * 8, rows * 8, (rows + 1) * 8, key_bytes


def _id_type(codes: int) -> type[np.uint8] | type[np.uint16]:
    return np.uint8 if codes <= 256 else np.uint16


@dataclass(frozen=True)
class FilePart:
    """An array of a file: its size in bytes, and its content piece by piece."""

    bytes: int
    pieces: Callable[[], Iterable[npt.NDArray[Any]]]

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> FilePart:
        return cls(array.nbytes, lambda: [array])


class ArraysFile:
    """Arrays behind a header, ready to be written: the size is known before the first byte is."""

    def __init__(
        self, magic: bytes, sizes: tuple[int, int, int, int, int], parts: Sequence[FilePart]
    ) -> None:
        """sizes: rows, three numbers and the bytes of the last part, for the header."""
        self._magic, self._numbers, self._parts = magic, sizes, parts
        self.bytes = _PAYLOAD_START + sum(_padded(part.bytes) for part in parts)

    def write(self, file: BinaryIO) -> None:
        """To an empty file. The header, which holds the payload's checksum, comes last.

        Errors as those of the parts' content; the file is then to be thrown away.
        """
        file.seek(_PAYLOAD_START)
        digest = xxhash.xxh3_128()
        for block in self._blocks():
            digest.update(block)
            file.write(block)
        fields = _HEADER.pack(self._magic, _FORMAT, *self._numbers, digest.digest())
        header = fields + xxhash.xxh3_64_digest(fields)
        file.seek(0)
        file.write(header.ljust(_PAYLOAD_START, b"\0"))

    def _blocks(self) -> Iterator[memoryview | bytes]:
        for part in self._parts:
            for piece in part.pieces():
                yield np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
            yield bytes(_padded(part.bytes) - part.bytes)


class EntryFile(ArraysFile):
    """A decoded shard as the file of an entry; its ids are decoded while they are written."""

    def __init__(self, rows: ShardRows, spec: wire.TokenSpec) -> None:
        id_type = np.dtype(_id_type(spec.codes))
        tokens = spec.grid_height * spec.grid_width
        ids = FilePart(
            len(rows) * tokens * id_type.itemsize,
            lambda: (part.astype(id_type, copy=False) for part in rows.id_parts()),
        )
        sizes = (
            *(len(rows), spec.grid_height, spec.grid_width),
            *(id_type.itemsize, rows.key_bytes.nbytes),
        )
        arrays: list[npt.NDArray[Any]] = [rows.labels, rows.source_bytes]
        arrays += [rows.key_offsets, rows.key_bytes]
        super().__init__(_MAGIC, sizes, [ids, *(FilePart.of(array) for array in arrays)])


class MappedEntry:
    """A file of arrays, mapped into memory; valid for as long as the object lives.

    The mapping holds a shared lock on the file, by which every process of the node sees that the
    entry is in use, and the only handle of it: a lock belongs to all copies of a handle, and a
    mapping has one of its own. Even an entry that is removed meanwhile can be read to the end.
    """

    def __init__(
        self, path: Path, magic: bytes, wanted: tuple[int, int, int, int], lengths: Lengths
    ) -> None:
        """Open an entry; FormatError if its header or size is not what is wanted.

        wanted: rows and three numbers of the header. lengths: bytes of the last part -> bytes of
        each part. FileNotFoundError if there is no such file. The payload is not looked at: see
        `check_payload`.
        """
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            stat = os.fstat(file.fileno())
            if stat.st_size < _PAYLOAD_START:
                raise FormatError(f"{path}: {stat.st_size} bytes are less than a header")
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self.inode = stat.st_ino
        self.file_bytes = stat.st_size
        fields, rest = self._map[: _HEADER.size], self._map[_HEADER.size : _PAYLOAD_START]
        if xxhash.xxh3_64_digest(fields) != rest[:8]:
            raise FormatError(f"{path}: the header is damaged")
        *found, last_bytes, self._digest = _HEADER.unpack(fields)
        if tuple(found) != (magic, _FORMAT, *wanted):
            raise FormatError(f"{path}: found {found}, expected {(magic, _FORMAT, *wanted)}")
        self._rows = wanted[0]
        self._sizes = lengths(last_bytes)
        self._starts = _PAYLOAD_START + np.cumsum([0, *map(_padded, self._sizes)])
        if self._starts[-1] != stat.st_size:
            raise FormatError(f"{path}: {stat.st_size} bytes, expected {self._starts[-1]}")

    def _part(self, number: int, kind: npt.DTypeLike) -> Any:
        count = self._sizes[number] // np.dtype(kind).itemsize
        return np.frombuffer(self._map, kind, count, int(self._starts[number]))

    def check_payload(self) -> bool:
        """Whether the bytes are those that were written; reads the whole file once."""
        found = xxhash.xxh3_128_digest(memoryview(self._map)[_PAYLOAD_START:])
        return bool(found == self._digest)

    def touch(self, path: Path) -> bool:
        """Note the use for eviction; False if `path` is no longer this entry: it was removed from
        the cache meanwhile, and perhaps laid down again.
        """
        try:
            there = path.stat().st_ino == self.inode
            if there:
                os.utime(path)
        except FileNotFoundError:
            return False
        return there

    def __len__(self) -> int:
        return self._rows

    def _check(self, index: IntArray) -> None:
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise InvalidInputError(
                f"rows {int(index.min())} to {int(index.max())} asked of a shard that has rows 0 "
                f"to {len(self) - 1}: the plan and the manifest do not belong together"
            )


class CachedShard(MappedEntry):
    """The rows of one shard; errors of opening as `MappedEntry`."""

    def __init__(self, path: Path, shard: wire.Shard, spec: wire.TokenSpec) -> None:
        id_type = np.dtype(_id_type(spec.codes))
        wanted = shard.rows, spec.grid_height, spec.grid_width, id_type.itemsize
        tokens = spec.grid_height * spec.grid_width

        def lengths(key_bytes: int) -> tuple[int, ...]:
            return _sizes(shard.rows, tokens, id_type.itemsize, key_bytes)

        super().__init__(path, _MAGIC, wanted, lengths)
        self._ids_NHW = self._part(0, id_type).reshape(wanted[:3])
        self._labels_N: IntArray = self._part(1, np.int64)
        self._source_bytes_N: IntArray = self._part(2, np.int64)
        self._key_offsets: IntArray = self._part(3, np.int64)
        self._key_bytes: npt.NDArray[np.uint8] = self._part(4, np.uint8)

    @property
    def labels(self) -> IntArray:
        """(N,) int64, mapped: labels of all rows."""
        return self._labels_N

    def take(self, index: IntArray, boxes: IntArray | None = None) -> tuple[IdArray, IntArray]:
        """Rows in the order asked: ids (n, h, w) uint16 and labels (n,) int64, as own copies.

        index: (n,) int64, 0 <= index < rows; InvalidInputError otherwise.
        boxes: (n, 4) what to keep of each grid, (y, x, h, w) of one size; the whole by default.
        """
        self._check(index)
        if boxes is None or not len(boxes):
            ids = self._ids_NHW[index]
        else:
            _, _, h, w = boxes[0].tolist()
            ids = cut(self._ids_NHW, index, boxes, (h, w))
        return ids.astype(np.uint16, copy=False), self._labels_N[index]

    def keys(self, index: IntArray) -> list[str]:
        """Names of the rows asked for, in that order."""
        self._check(index)
        starts, stops = self._key_offsets[index].tolist(), self._key_offsets[index + 1].tolist()
        raw = self._key_bytes
        return [raw[a:b].tobytes().decode() for a, b in zip(starts, stops, strict=True)]

    def source_bytes(self, index: IntArray) -> IntArray:
        """(n,) int64: sizes of the rows' original image files, 0 where not known."""
        self._check(index)
        return self._source_bytes_N[index]
