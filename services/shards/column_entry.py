"""A part of an added column as one file of the node's cache, mapped into memory (see entry.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from services.shards.column_file import Values, number_type
from services.shards.entry import ArraysFile, FilePart, MappedEntry
from services.shards.validate import COLUMN_TYPES
from services.types import IntArray

ColumnValues: TypeAlias = npt.NDArray[Any] | list[str] | list[bytes]

_MAGIC = b"SEITCOLS"


class ColumnEntryFile(ArraysFile):
    """The values of a part as the file of an entry: offsets (none for numbers), then values."""

    def __init__(self, values: Values, kind: str) -> None:
        offsets, content = values
        number = number_type(kind)
        rows = len(offsets) - 1 if number is None else len(content)
        width = number.itemsize if number else 0
        sizes = rows, COLUMN_TYPES.index(kind), width, 0, content.nbytes
        super().__init__(_MAGIC, sizes, list(map(FilePart.of, values)))


class CachedColumn(MappedEntry):
    """The values of one part, `rows` of them; errors of opening as `MappedEntry`."""

    def __init__(self, path: Path, rows: int, kind: str) -> None:
        number = number_type(kind)
        width = number.itemsize if number else 0

        def lengths(last_bytes: int) -> tuple[int, ...]:
            return (0, rows * width) if number else ((rows + 1) * 8, last_bytes)

        super().__init__(path, _MAGIC, (rows, COLUMN_TYPES.index(kind), width, 0), lengths)
        self._text = kind == "string"
        self._offsets: IntArray | None = None if number else self._part(0, np.int64)
        self._values = self._part(1, number or np.uint8)

    def take(self, index: IntArray) -> ColumnValues:
        """The values of the rows asked for, in that order, as own copies.

        index: (n,) int64, 0 <= index < rows; InvalidInputError otherwise.
        """
        self._check(index)
        if self._offsets is None:
            numbers: npt.NDArray[Any] = self._values[index]
            return numbers
        starts, stops = self._offsets[index].tolist(), self._offsets[index + 1].tolist()
        found = [self._values[a:b].tobytes() for a, b in zip(starts, stops, strict=True)]
        return [value.decode() for value in found] if self._text else found
