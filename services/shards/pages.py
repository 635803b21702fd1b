"""What the pages of a Parquet column say of themselves, read before memory is taken for values.

A footer's sizes and encodings are hearsay: whoever unpacks a column takes the memory, and goes by
the encoding, that the header of each page names. A dictionary page, or a prefix that costs nothing
to repeat, lets a few hundred bytes become gigabytes. So each header is held against the format, and
text is decoded a few rows at a time.

A header is a struct of Thrift's compact protocol (PageHeader of parquet.thrift).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from services.errors import FormatError
from services.shards.footer import Chunk
from services.shards.thrift import Fields, read_struct
from services.types import IntArray

_ENCODINGS = {
    0: "PLAIN",
    2: "PLAIN_DICTIONARY",
    3: "RLE",
    5: "DELTA_BINARY_PACKED",
    6: "DELTA_LENGTH_BYTE_ARRAY",
    7: "DELTA_BYTE_ARRAY",
    8: "RLE_DICTIONARY",
}
_DATA_PAGES = {0: (5, 2), 3: (8, 4)}
"""By type: the field of its own header, and in that the field of the encoding."""
_TYPE, _UNPACKED, _PACKED, _VALUES = 1, 2, 3, 1  # fields
_DEPTH = 3  # a page's header, that of its type, statistics
_BATCH_BYTES = 1 << 26  # what a few rows of text may take, whatever they are


@dataclass(frozen=True)
class PageSizes:
    """Unpacked bytes of the pages of a column: of all together, and of the largest."""

    total: int
    largest: int


def check_pages(data: bytes, column: Chunk, encoding: str, limit: int) -> PageSizes:
    """What the pages of a column of the file `data` unpack to.

    column: what the footer says of it. FormatError unless its pages hold as many values as that
    says, all in this encoding, and unpack to at most `limit` bytes together.
    """
    name, place = column.name, column.place
    end = place + column.bytes
    if column.dictionary or not 0 <= place <= end <= len(data):
        raise FormatError(f"column {name} has a dictionary, or bytes outside of the file")
    values = total = largest = 0
    while place < end:
        header, place = _header(data, place, name)
        own, field = _DATA_PAGES.get(_number(header, _TYPE), (0, 0))
        said = header.get(own)
        said = said if isinstance(said, dict) else {}
        found = _ENCODINGS.get(_number(said, field), "an unknown encoding")
        if found != encoding:
            raise FormatError(f"column {name} has a page in {found}, this format has {encoding}")
        size, packed, count = (
            _number(header, _UNPACKED),
            _number(header, _PACKED),
            _number(said, _VALUES),
        )
        if min(size, packed, count) < 0:
            raise FormatError(f"column {name} has a page of {size} bytes: it is damaged")
        place += packed
        values += count
        total += size
        largest = max(largest, size)
        if total > limit:
            raise FormatError(f"column {name} unpacks to {total} bytes, at most {limit} make sense")
    if place != end or values != column.values:
        raise FormatError(f"column {name} has pages of {values} of {column.values} values")
    return PageSizes(total, largest)


def read_text(file: pq.ParquetFile, name: str, page_bytes: int, most: int) -> tuple[IntArray, Any]:
    """Offsets (N + 1,) and bytes of a column of text, whose largest page has `page_bytes`.

    FormatError for text that is not UTF-8, or longer than `most` bytes. A value has no more bytes
    than its page and the value before it, so that many rows at a time stay within a limit.
    """
    rows = max(1, _BATCH_BYTES // (page_bytes + most))
    sizes, content = [np.zeros(1, np.int64)], []
    for batch in file.iter_batches(rows, columns=[name], use_threads=False):
        array = batch.column(0)
        try:
            array.validate(full=True)
        except pa.ArrowInvalid as error:
            raise FormatError(
                f"column {name} is not UTF-8 ({error}): write the file again"
            ) from error
        offsets, text = bytes_of(array)
        lengths = np.diff(offsets)
        longest = int(lengths.max(initial=0))
        if longest > most:
            raise FormatError(
                f"column {name} has a value of {longest} bytes, valid are 0 to {most}: the file is "
                "damaged, fetch or write it again"
            )
        sizes.append(lengths)
        content.append(text)
    return np.cumsum(np.concatenate(sizes)), np.concatenate(content)


def bytes_of(array: Any) -> tuple[IntArray, Any]:
    """Offsets (N + 1,) and bytes of a string or binary array."""
    _, places, data = array.buffers()
    offsets = np.frombuffer(places, np.int32)[array.offset :][: len(array) + 1].astype(np.int64)
    content = np.frombuffer(data or b"", np.uint8)[offsets[0] : offsets[-1]]
    return offsets - offsets[0], content


def _number(fields: Fields, field: int) -> int:
    """-1 where there is no such number."""
    value = fields.get(field)
    return value if type(value) is int else -1


def _header(data: bytes, place: int, name: str) -> tuple[Fields, int]:
    try:
        return read_struct(data, place, _DEPTH)
    except (IndexError, ValueError) as error:
        raise FormatError(f"column {name} has a page whose header cannot be read") from error
