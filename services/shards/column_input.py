"""The values that a user gives for a new column: a Parquet file of keys and values.

Keys are held as 128-bit hashes (16 bytes a row, and 8 for their order), numbers as they are;
strings and binary values lie back to back in a temporary file, from which any rows are read in
any order. Memory depends on the number of rows, not on the size of the values.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from services.errors import InvalidInputError, NotFoundError, StoreError
from services.shards.column_file import PART_BYTES, ROW_BYTES, arrow_type, number_type, values_of
from services.shards.validate import COLUMN_TYPES
from services.types import IntArray

MAX_VALUE_BYTES = PART_BYTES - ROW_BYTES

_KEYS = {pa.string(), pa.large_string()}
GIVEN_TYPES = tuple(kind for kind in COLUMN_TYPES if kind != "coefficients")
"""Types of columns that are given; coefficients come with their pictures' ingest."""

_TYPES = {arrow_type(kind): kind for kind in GIVEN_TYPES}
_LARGE = {pa.large_string(): "string", pa.large_binary(): "binary"}
_DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)  # the last of names of columns
_BATCH_BYTES = 1 << 25
_BATCH_ROWS = 1 << 16

KeyHashes = npt.NDArray[np.bytes_]


def hash_keys(offsets: IntArray, content: bytes) -> KeyHashes:
    """(N,) xxh3-128 of each key, as 16 bytes. offsets: (N + 1,) into the keys' bytes."""
    places, whole = offsets.tolist(), memoryview(content)
    keys = (whole[a:b] for a, b in itertools.pairwise(places))
    return np.frombuffer(b"".join(map(xxhash.xxh3_128_digest, keys)), "S16")


class ColumnInput:
    """A Parquet file with the columns `key` (string) and `value`, one row a key.

    type: of the values, one of COLUMN_TYPES. A context manager: leaving it ends the temporary file.
    NotFoundError if there is no file; InvalidInputError if it is not such a file.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise NotFoundError(f"there is no file {path}: give the Parquet file of the values")
        self._path = path
        try:
            self._file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        except _DAMAGE as error:
            raise self._broken(error) from error
        schema = self._file.schema_arrow
        for name in ("key", "value"):
            if schema.names.count(name) != 1:
                raise InvalidInputError(
                    f"{path} has the columns {', '.join(schema.names)}; it needs `key` and "
                    "`value`, once each: rename them"
                )
        kind = schema.field("value").type
        found = _TYPES.get(kind) or _LARGE.get(kind)
        if found is None or schema.field("key").type not in _KEYS:
            raise InvalidInputError(
                f"{path}: key is {schema.field('key').type}, value is {kind}; valid are string "
                f"keys and values of {', '.join(GIVEN_TYPES)}: cast them"
            )
        if self._file.metadata.num_rows < 1:
            raise InvalidInputError(f"{path} has no rows: give one for each row of the dataset")
        self.type = found
        self._number = number_type(found)
        self._scratch = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the object
        self._offsets: IntArray = np.zeros(0, np.int64)
        self._numbers: Any = None

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def __enter__(self) -> ColumnInput:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._scratch.close()
        self._file.close()

    def key_hashes(self) -> KeyHashes:
        """(N,) of the file's keys, in its order."""
        batches = map(values_of, self._batches("key"))
        return np.concatenate([hash_keys(offsets, bytes(keys)) for offsets, keys in batches])

    def keys(self, rows: Iterable[int]) -> list[str]:
        """Keys of a few rows, for messages."""
        wanted, start = set(rows), 0
        found: dict[int, str] = {}
        for batch in self._batches("key"):
            here = [row for row in wanted if start <= row < start + len(batch)]
            found |= {row: batch[row - start].as_py() for row in here}
            start += len(batch)
        return [found[row] for row in sorted(wanted)]

    def load(self) -> None:
        """Read the values, after which `lengths` and `take` answer.

        InvalidInputError for a value that is too large; StoreError if the disk is full.
        """
        if self._number is not None:
            parts = [values_of(batch)[1] for batch in self._batches("value")]
            self._numbers = np.concatenate(parts)
            return
        lengths = []
        for batch in self._batches("value"):
            offsets, content = values_of(batch)
            lengths.append(np.diff(offsets))
            self._spill(content)
        self._offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        row = int(np.argmax(np.diff(self._offsets)))
        if self._offsets[row + 1] - self._offsets[row] > MAX_VALUE_BYTES:
            raise InvalidInputError(
                f"{self._path}: the value of key {self.keys([row])[0]!r} has "
                f"{self._offsets[row + 1] - self._offsets[row]} bytes, at most {MAX_VALUE_BYTES} "
                "are valid, because a reader holds several at once: make them smaller"
            )

    def _spill(self, content: npt.NDArray[np.uint8]) -> None:
        try:
            self._scratch.write(content.data)
            self._scratch.flush()
        except OSError as error:
            raise StoreError(
                f"{tempfile.gettempdir()}: {error}; the values need room there, uncompressed: free "
                "space, or set TMPDIR to a folder with more"
            ) from error

    def lengths(self, rows: IntArray) -> IntArray:
        """(n,) bytes of the values of these rows."""
        if self._number is not None:
            return np.full(len(rows), self._number.itemsize, np.int64)
        lengths: IntArray = self._offsets[rows + 1] - self._offsets[rows]
        return lengths

    def take(self, rows: IntArray) -> Any:
        """The values of these rows, in that order, as an Arrow array."""
        if self._number is not None:
            return pa.array(self._numbers[rows])
        places = np.concatenate([[0], np.cumsum(self.lengths(rows))])
        content = np.empty(int(places[-1]), np.uint8)
        for row, (start, stop) in zip(
            rows.tolist(), itertools.pairwise(places.tolist()), strict=True
        ):
            self._read(int(self._offsets[row]), content[start:stop])
        buffers = [None, pa.py_buffer(places.astype(np.int32)), pa.py_buffer(content)]
        return pa.Array.from_buffers(arrow_type(self.type), len(rows), buffers)

    def _read(self, place: int, target: npt.NDArray[np.uint8]) -> None:
        """Fill the target with the temporary file's bytes from `place` on; safe in threads."""
        done = 0
        while done < len(target):  # one call gives 2 GiB at most, and may give less
            found = os.preadv(self._scratch.fileno(), [target[done:].data], place + done)
            if not found:
                raise StoreError(f"{tempfile.gettempdir()}: the temporary file of the values ended")
            done += found

    def _batches(self, name: str) -> Iterator[Any]:
        """The column's values in the file's order, about 32 MiB at a time; none is null."""
        start = 0
        for group in range(self._file.metadata.num_row_groups):
            size = self._file.metadata.row_group(group)
            # Of all columns: pyarrow ends the process where a damaged footer is asked for one.
            stored = max(1, size.total_byte_size)
            rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * size.num_rows // stored))
            try:
                for batch in self._file.iter_batches(rows, [group], [name], use_threads=False):
                    array = batch.column(0)
                    if array.null_count:
                        row = start + int(np.argmax(array.is_null()))
                        raise InvalidInputError(
                            f"{self._path}: the {name} of row {row} is null; each row needs a key "
                            "and a value: fill it in"
                        )
                    array.validate(full=True)
                    yield array
                    start += len(array)
            except _DAMAGE as error:
                raise self._broken(error) from error
        if start != len(self):
            raise self._broken(f"its footer says {len(self)} rows, they are {start}")

    def _broken(self, error: object) -> InvalidInputError:
        reason = " ".join(str(error).split())[:300]
        return InvalidInputError(f"{self._path} is not a whole Parquet file: {reason}")
