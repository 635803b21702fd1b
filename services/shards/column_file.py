"""Values of an added column for some consecutive rows of a shard, as one Parquet file.

    value         int32, int64, float32, float64, string or binary, none of them null

or, of the type "coefficients", the columns of `coefficient_file`.

Key-value metadata: `seit.format` (checked before anything else), `seit.column`, JSON with the
column's name and type, the xxh3 of the shard, the first of its rows and their number, and
`seit.check`, its xxh3-64. A file holds at most `PART_BYTES` of values, so that one row, wherever
it stands, costs no more than that: a shard of large values has several files, its parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from services.errors import FormatError
from services.shards.coefficient_file import check_streams, rows_of_table, streams_table
from services.shards.footer import Chunk, column_chunks
from services.shards.pages import check_pages
from services.shards.validate import COLUMN_TYPES
from services.types import IntArray
from services.wire.seit import v1 as wire

FORMAT_VERSION = 1
PART_BYTES = 1 << 25
ROW_BYTES = 8  # what a row costs beside its value: its place

_FORMAT_KEY, _COLUMN_KEY, _CHECK_KEY = b"seit.format", b"seit.column", b"seit.check"
_ZSTD_LEVEL = 3
_PAGE_BYTES = 1 << 20
_PAGE_SLACK = 1.05  # headers, relative to the values
_VARIABLE = {"string": pa.string(), "binary": pa.binary(), "coefficients": pa.binary()}
_STREAMS = "coefficients"

Values: TypeAlias = tuple[IntArray, npt.NDArray[Any]]
"""Of N rows: no offsets and (N,) numbers, or offsets (N + 1,) int64 into (B,) uint8 bytes."""


@dataclass(frozen=True)
class Part:
    """What a file belongs to: `rows` rows from `start` on of the shard with the xxh3 `shard`."""

    name: str
    type: str
    shard: str
    start: int
    rows: int

    def describe(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def column_parts(shard: wire.Shard, name: str | None = None) -> Iterator[tuple[Part, wire.Column]]:
    """The files of a shard's columns, or of one of them, each with what it belongs to."""
    starts: dict[str, int] = {}
    for column in shard.columns:
        start = starts.get(column.name, 0)
        starts[column.name] = start + column.rows
        if name in (None, column.name):
            yield Part(column.name, column.type, shard.xxh3, start, column.rows), column


def number_type(kind: str) -> np.dtype[Any] | None:
    """The numpy type of a column's type, None for strings and binary values."""
    return None if kind in _VARIABLE else np.dtype(kind)


def arrow_type(kind: str) -> Any:
    """The Arrow type of a column's type, one of COLUMN_TYPES."""
    assert kind in COLUMN_TYPES
    return _VARIABLE.get(kind) or pa.from_numpy_dtype(np.dtype(kind))


def part_file(values: Any, part: Part) -> bytes:
    """The file of an Arrow array without nulls, of `arrow_type(part.type)`."""
    sink = pa.BufferOutputStream()
    described = part.describe()
    streams = part.type == _STREAMS
    more: dict[bytes, bytes] = {}
    if streams:
        table, more = streams_table(values)
    else:
        schema = pa.schema([pa.field("value", arrow_type(part.type), nullable=False)])
        table = pa.Table.from_arrays([values], schema=schema)
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="none" if streams else "zstd",
        compression_level=None if streams else _ZSTD_LEVEL,
        use_dictionary=False,
        column_encoding="PLAIN",
        data_page_size=_PAGE_BYTES,
        write_page_checksum=True,
        write_statistics=False,
        store_schema=False,
    ) as writer:
        writer.write_table(table, row_group_size=len(table))
        writer.add_key_value_metadata(
            {
                _FORMAT_KEY: str(FORMAT_VERSION).encode(),
                _COLUMN_KEY: described,
                _CHECK_KEY: xxhash.xxh3_64_hexdigest(described).encode(),
                **more,
            }
        )
    return bytes(sink.getvalue())


def read_part(data: bytes, part: Part, name: str) -> Values:
    """The values of a file; name: what errors call it.

    FormatError for a newer format, a file of other rows than `part`, and damaged content. Footer
    and pages are held against `part` before memory is taken for the values.
    """
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            chunks = column_chunks(data)
            _check_footer(file, chunks, part)
            _check_pages(data, chunks)
            table = file.read(use_threads=False)
            if part.type == _STREAMS:
                said = file.metadata.metadata
                array = rows_of_table(table, said, part.rows, _most_bytes())
            else:
                array = table["value"].combine_chunks()
        array.validate(full=True)
        if len(array) != part.rows or array.null_count:  # a damaged page header can hide values
            raise FormatError(f"unpacks to {len(array)} values for {part.rows} rows")
        return values_of(array)
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise FormatError(
            f"{name}: not a whole Parquet file ({reason}): restore it, or drop the column and add "
            "it again"
        ) from error


def _most_bytes() -> int:
    """What a part's file may unpack to."""
    return int(PART_BYTES * _PAGE_SLACK) + _PAGE_BYTES


def _check_footer(file: pq.ParquetFile, chunks: Sequence[Chunk], part: Part) -> None:
    metadata = file.metadata
    said = metadata.metadata or {}
    found = said.get(_FORMAT_KEY, b"none").decode(errors="replace")
    if found != str(FORMAT_VERSION):
        newer = found.isdecimal() and int(found) > FORMAT_VERSION
        remedy = "upgrade seitpp" if newer else "this is not a column's file"
        raise FormatError(f"found format {found}, this program reads {FORMAT_VERSION}: {remedy}")
    described = said.get(_COLUMN_KEY, b"")
    if said.get(_CHECK_KEY) != xxhash.xxh3_64_hexdigest(described).encode():
        raise FormatError("the description of its values is damaged: restore it")
    try:
        same = json.loads(described) == asdict(part)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"its description of the values cannot be read: {error}") from error
    if not same:
        raise FormatError(
            f"holds {described.decode(errors='replace')[:300]}, the manifest names it for "
            f"{part.describe().decode()}: it belongs to other rows; add the column again"
        )
    if part.type == _STREAMS:
        check_streams(file)
        return
    schema = pa.schema([pa.field("value", arrow_type(part.type), nullable=False)])
    if not file.schema_arrow.equals(schema, check_metadata=False):
        raise FormatError(f"columns {file.schema_arrow.to_string()!r}, expected {schema}")
    if metadata.num_row_groups != 1:
        raise FormatError(f"holds {metadata.num_row_groups} row groups, expected 1")
    values = chunks[0].values
    if not metadata.num_rows == metadata.row_group(0).num_rows == values == part.rows:
        raise FormatError(f"has {values} values for {part.rows} rows")


def _check_pages(data: bytes, chunks: Sequence[Chunk]) -> None:
    """FormatError unless all pages hold their values plainly, and as many bytes as a part may."""
    left = _most_bytes()
    for chunk in chunks:
        left -= check_pages(data, chunk, "PLAIN", left).total


def values_of(array: Any) -> Values:
    """The values of an Arrow array without nulls, also of large_string and large_binary."""
    if not pa.types.is_primitive(array.type):
        large = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
        _, places, data = array.buffers()
        offsets = np.frombuffer(places, np.int64 if large else np.int32)
        offsets = offsets[array.offset :][: len(array) + 1].astype(np.int64)
        content = np.frombuffer(data or b"", np.uint8)[offsets[0] : offsets[-1]]
        return offsets - offsets[0], content
    return np.zeros(0, np.int64), array.to_numpy()
