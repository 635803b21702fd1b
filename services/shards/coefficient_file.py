"""Rows of coefficients as one Parquet file: a row of the table is a stream of numbers.

    stream     string  dc, count, run, value or escape (see `coefficients`)
    component  int32   g
    index      int32   p of a run, q of a value, else 0
    size       int64   bytes of the stream
    data       binary  the stream, as one zstd frame

Key-value metadata beside a column file's own: `seit.coefficients`, JSON with the shape of a row,
and `seit.coefficients.check`, its xxh3-64, which files of 0.2.0 and before lack.
Each stream is compressed by itself: its numbers have a distribution of their own.
"""

from __future__ import annotations

import json
import operator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from services.errors import FormatError
from services.shards.coefficients import (
    MAX_COMPONENTS,
    MAX_KEPT,
    MapShape,
    Stream,
    from_rows,
    from_streams,
    to_rows,
    to_streams,
)

SHAPE_KEY, SHAPE_CHECK_KEY = b"seit.coefficients", b"seit.coefficients.check"

_SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in (
            ("stream", pa.string()),
            ("component", pa.int32()),
            ("index", pa.int32()),
            ("size", pa.int64()),
            ("data", pa.binary()),
        )
    ]
)
_ZSTD_LEVEL = 19  # read as fast as any
_MOST_STREAMS = MAX_COMPONENTS * (2 + 2 * MAX_KEPT) + 1


def streams_table(values: Any) -> tuple[pa.Table, dict[bytes, bytes]]:
    """The table of an Arrow array of rows in their own form, and what its metadata says."""
    rows = from_rows(values.to_pylist())
    packer = pa.Codec("zstd", _ZSTD_LEVEL)
    streams = to_streams(rows)
    columns = [
        [one.kind for one in streams],
        [one.component for one in streams],
        [one.index for one in streams],
        [len(one.data) for one in streams],
        [packer.compress(one.data, asbytes=True) for one in streams],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    described = json.dumps(asdict(rows.shape)).encode()
    check = xxhash.xxh3_64_hexdigest(described).encode()
    said = {SHAPE_KEY: described, SHAPE_CHECK_KEY: check}
    return pa.Table.from_arrays(arrays, schema=_SCHEMA), said


def check_streams(file: pq.ParquetFile) -> None:
    """FormatError unless the footer is that of such a table."""
    metadata = file.metadata
    if not file.schema_arrow.equals(_SCHEMA, check_metadata=False) or metadata.num_row_groups != 1:
        raise FormatError("is not a table of streams of coefficients")
    if not metadata.num_rows == metadata.row_group(0).num_rows <= _MOST_STREAMS:
        raise FormatError(f"holds {metadata.num_rows} streams, at most {_MOST_STREAMS} make sense")


def rows_of_table(table: pa.Table, metadata: dict[bytes, bytes], rows: int, limit: int) -> Any:
    """Arrow array of the `rows` rows; FormatError, before memory is taken, past `limit` bytes."""
    described = metadata.get(SHAPE_KEY, b"")
    check = xxhash.xxh3_64_hexdigest(described).encode()
    if metadata.get(SHAPE_CHECK_KEY, check) != check:
        raise FormatError("the description of its rows' shape is damaged: restore it")
    try:
        said = json.loads(described)
        shape = MapShape(**{name: operator.index(side) for name, side in said.items()})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"its description of the rows cannot be read: {error}") from error
    packer = pa.Codec("zstd")
    listed = table.to_pylist()
    total = sum(one["size"] for one in listed)
    if any(one["size"] < 0 for one in listed) or total > limit or rows * shape.blocks > limit:
        raise FormatError(f"its streams unpack to {total} bytes, at most {limit}")
    streams = [
        Stream(
            one["stream"],
            one["component"],
            one["index"],
            packer.decompress(one["data"], one["size"], asbytes=True),
        )
        for one in listed
    ]
    return pa.array(to_rows(from_streams(streams, shape, rows)), pa.binary())
