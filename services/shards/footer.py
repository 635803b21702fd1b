"""What a Parquet file's footer says of its columns.

pyarrow opens a file of any bytes with an error at worst, but to ask it for the metadata of a column
whose footer is damaged ends the process: it lets an exception of C++ through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.errors import FormatError
from services.shards.thrift import Fields, read_struct

_DEPTH = 10  # down to the numbers of a column's statistics: four structs, and lists of them
_MAGIC_BYTES, _LENGTH_BYTES = 4, 4  # behind the footer, its length first
# Numbers of fields in parquet.thrift.
_ROW_GROUPS, _COLUMNS, _METADATA = 4, 1, 3
_PATH, _VALUES, _PACKED, _PLACE, _DICTIONARY = 3, 5, 7, 9, 11


@dataclass(frozen=True)
class Chunk:
    """A column's part of a row group.

    name: its path in the schema. values: how many. place, bytes: of its pages in the file.
    dictionary: whether a page of one is named.
    """

    name: str
    values: int
    place: int
    bytes: int
    dictionary: bool


def column_chunks(data: bytes) -> list[Chunk]:
    """The columns of the first row group of a file that pyarrow has opened; FormatError where its
    footer does not say what they are."""
    end = len(data) - _MAGIC_BYTES - _LENGTH_BYTES
    length = int.from_bytes(data[end : end + _LENGTH_BYTES], "little")
    try:
        footer, _ = read_struct(data[end - length : end], 0, _DEPTH)
        return [_chunk(one[_METADATA]) for one in footer[_ROW_GROUPS][0][_COLUMNS]]
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise FormatError(
            "the footer's description of its columns cannot be read: the file is damaged, fetch or "
            "write it again"
        ) from error


def _chunk(fields: Fields) -> Chunk:
    numbers: list[Any] = [fields[one] for one in (_VALUES, _PLACE, _PACKED)]
    if any(type(one) is not int for one in numbers):
        raise ValueError("no number")
    values, place, packed = numbers
    path = ".".join(part.decode() for part in fields[_PATH])
    return Chunk(path, values, place, packed, _DICTIONARY in fields)
