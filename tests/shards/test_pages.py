"""A few bytes never become gigabytes, and what a column says is checked before it is unpacked."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import FormatError
from services.shards import layout
from services.shards.codec import Encoding
from services.shards.footer import Chunk, column_chunks
from services.shards.pages import check_pages
from services.types import TokenRows
from services.wire.seit import v1 as wire

SPEC = wire.TokenSpec(grid_height=1, grid_width=1, codes=4, channels=4)
MB = 1 << 20


def forged(keys: Any, **options: Any) -> bytes:
    """A shard of these keys as the writer lays it out, or otherwise where `options` say so."""
    rows = len(keys)
    schema = layout._schema(Encoding.BYTE, 1, 1)
    fixed = [pa.array(np.zeros(rows), pa.int32()), pa.array(np.zeros(rows), pa.int64())]
    tokens = pa.array([b"\0"] * rows, pa.binary(1))
    described = json.dumps(
        {"rows": rows, "grid": [1, 1], "codes": 4, "encoding": "byte", "ranks": "AgA="}
    ).encode()
    encodings = {name: layout._PARQUET_ENCODINGS[name] for name in schema.names}
    writing = {"use_dictionary": False, "column_encoding": encodings, **options}
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, schema, compression="zstd", write_statistics=False, store_schema=False, **writing
    ) as writer:
        table = pa.Table.from_arrays([keys, *fixed, tokens], schema=schema)
        writer.write_table(table, row_group_size=rows)
        writer.add_key_value_metadata(
            {
                b"seit.format": b"1",
                b"seit.tokens": described,
                b"seit.check": xxhash.xxh3_64_hexdigest(described).encode(),
            }
        )
    return bytes(sink.getvalue())


@contextlib.contextmanager
def counting() -> Iterator[pa.MemoryPool]:
    """Counts what Arrow takes."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pa.set_memory_pool(before)


@pytest.mark.parametrize("size", [1025, 2000, 400_000])
def test_a_prefix_that_costs_nothing_to_repeat_is_refused(size: int) -> None:
    rows = 1000
    data = forged(pa.array(["k" * size] * rows))
    assert len(data) < 2000
    words = f"key has a value of {size} bytes, valid are 0 to 1024"
    with counting() as pool, pytest.raises(FormatError, match=words):
        layout.read_rows(data, SPEC)
    assert pool.max_memory() < 150 * MB  # all of them: 400 MB


@pytest.mark.parametrize("rows", [1, 8, 5000])
def test_keys_of_any_length_that_is_valid_are_read(rows: int) -> None:
    lengths = np.random.default_rng(rows).integers(0, 1025, rows)
    lengths[-1] = 1024
    keys = ["k" * length for length in lengths.tolist()]
    assert layout.read_rows(forged(pa.array(keys)), SPEC).keys() == keys


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(max_size=6), min_size=1, max_size=40))
def test_keys_are_text_or_refused(raw: list[bytes]) -> None:
    """Whether they are text is found when the shard is read, not when a key is asked for."""
    places = np.cumsum([0, *map(len, raw)]).astype(np.int32)
    buffers = [None, pa.py_buffer(places), pa.py_buffer(b"".join(raw))]
    data = forged(pa.Array.from_buffers(pa.string(), len(raw), buffers))
    try:
        found = layout.read_rows(data, SPEC).keys()
    except FormatError as error:
        assert "not UTF-8" in str(error)  # noqa: PT017
        with pytest.raises(UnicodeDecodeError):
            [one.decode() for one in raw]
        return
    assert [one.encode() for one in found] == raw


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"use_dictionary": True, "column_encoding": None}, "key has a dictionary"),
        ({"use_dictionary": ["tokens"], "column_encoding": None}, "page in PLAIN, this format has"),
        ({"column_encoding": {"key": "DELTA_LENGTH_BYTE_ARRAY"}}, "page in DELTA_LENGTH"),
    ],
)
def test_other_encodings_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        layout.read_rows(forged(pa.array(["a", "b"] * 500), **options), SPEC)


def test_escape_values_are_not_taken_from_a_dictionary() -> None:
    spec = wire.TokenSpec(grid_height=16, grid_width=16, codes=400, channels=4)
    rng = np.random.default_rng(0)
    ids = np.minimum(rng.geometric(0.02, (60, 16, 16)), 399).astype(np.uint16)
    zeros = np.zeros(60, np.int64)
    data = layout.to_parquet(TokenRows(ids, zeros, [str(row) for row in range(60)], zeros), spec)
    file = pq.ParquetFile(pa.BufferReader(data))
    assert "escape" in file.schema_arrow.names
    sink = pa.BufferOutputStream()
    encodings = {
        name: layout._PARQUET_ENCODINGS[name]
        for name in file.schema_arrow.names
        if name != "escape"
    }
    with pq.ParquetWriter(
        sink, file.schema_arrow, use_dictionary=["escape"], column_encoding=encodings
    ) as writer:
        writer.write_table(file.read())
        writer.add_key_value_metadata(file.metadata.metadata)
    with pytest.raises(FormatError, match="column escape has a dictionary"):
        layout.read_rows(bytes(sink.getvalue()), spec)


def column_of(data: bytes, **lies: Any) -> Chunk:
    return replace(column_chunks(data)[0], **lies)


def test_pages_are_believed_more_than_the_footer() -> None:
    """A footer may hide the dictionary, or claim fewer bytes: Arrow goes by the pages."""
    hidden = forged(pa.array(["a" * 100] * 900), use_dictionary=True, column_encoding=None)
    first = pq.ParquetFile(pa.BufferReader(hidden)).metadata.row_group(0).column(0)
    liar = column_of(hidden, dictionary=False, place=first.dictionary_page_offset)
    with pytest.raises(FormatError, match="this format has DELTA_BYTE_ARRAY"):
        check_pages(hidden, liar, "DELTA_BYTE_ARRAY", MB)
    data = forged(pa.array([str(row) * 9 for row in range(900)]))
    sizes = check_pages(data, column_of(data), "DELTA_BYTE_ARRAY", MB)
    assert 0 < sizes.largest <= sizes.total < MB
    for limit in (0, sizes.total - 1):
        with pytest.raises(FormatError, match="unpacks to"):
            check_pages(data, column_of(data), "DELTA_BYTE_ARRAY", limit)
    with pytest.raises(FormatError, match="pages of 900 of 901 values"):
        check_pages(data, column_of(data, values=901), "DELTA_BYTE_ARRAY", MB)
    for size in (-1, 3, first.total_compressed_size + 1, len(data)):
        with pytest.raises(FormatError):
            check_pages(data, column_of(data, bytes=size), "DELTA_BYTE_ARRAY", MB)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=40), st.integers(0, 30))
def test_any_header_of_a_page_is_read_or_refused(raw: bytes, place: int) -> None:
    data = forged(pa.array(["a", "b"]))
    column = column_of(data)
    at = column.place + place
    spoilt = data[:at] + raw + data[at + len(raw) :]
    try:
        sizes = check_pages(spoilt, column, "DELTA_BYTE_ARRAY", MB)
    except FormatError:
        return
    assert sizes.total <= MB
