"""Files of a column's values, sound, damaged and forged."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import FormatError
from services.shards import coefficient_file, column_file
from services.shards.column_file import Part, arrow_type, part_file, read_part


@settings(deadline=None, max_examples=60)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7), cut=st.integers(0, 400))
def test_a_damaged_file_never_gives_other_values(place: int, bit: int, cut: int) -> None:
    """With a checksum that fits, as a liar would write it: FormatError, or the values."""
    values = [bytes([row]) * 9 for row in range(20)]
    part = Part("mask", "binary", "0" * 32, 5, 20)
    data = bytearray(part_file(pa.array(values, pa.binary()), part))
    data[place % len(data)] ^= 1 << bit
    try:
        offsets, content = read_part(bytes(data[: len(data) - cut]), part, "x")
    except FormatError:
        return
    found = content.tobytes()
    assert [found[a:b] for a, b in pairwise(offsets)] == values


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Part("mask", "binary", "0" * 32, 0, 3), "other rows"),
        (Part("mask", "binary", "0" * 32, 1, 4), "other rows"),
        (Part("mask", "string", "0" * 32, 0, 4), "other rows"),
        (Part("musk", "binary", "0" * 32, 0, 4), "other rows"),
        (Part("mask", "binary", "1" * 32, 0, 4), "other rows"),
    ],
)
def test_a_part_of_other_rows_is_refused(part: Part, words: str) -> None:
    values = pa.array([b"a", b"", b"c", b"d"], pa.binary())
    data = part_file(values, Part("mask", "binary", "0" * 32, 0, 4))
    with pytest.raises(FormatError, match=words):
        read_part(data, part, "x")


def forged(
    part: Part, table: pa.Table, form: bytes = b"1", dictionary: bool = False, **options: Any
) -> bytes:
    described = json.dumps(asdict(part)).encode()
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, table.schema, use_dictionary=dictionary, store_schema=False
    ) as writer:
        writer.write_table(table, **options)
        writer.add_key_value_metadata(
            {
                "seit.format": form.decode(),
                "seit.column": described.decode(),
                "seit.check": xxhash.xxh3_64_hexdigest(described),
            }
        )
    return bytes(sink.getvalue())


def test_what_a_liar_writes_is_refused() -> None:
    part = Part("mask", "int32", "0" * 32, 0, 4)
    field = pa.field("value", pa.int32(), nullable=False)
    good = pa.table([pa.array([1, 2, 3, 4], pa.int32())], schema=pa.schema([field]))
    assert read_part(forged(part, good), part, "x")[1].tolist() == [1, 2, 3, 4]
    wide = pa.table(
        [pa.array([1, 2, 3, 4])], schema=pa.schema([pa.field("value", pa.int64(), False)])
    )
    cases = {
        "upgrade seitpp": forged(part, good, b"2"),
        "not a column": forged(part, good, b"x"),
        "row groups": forged(part, good, row_group_size=2),
        "3 values for 4 rows": forged(part, good[:3]),
        "columns": forged(part, wide),
        "not a whole Parquet": b"PAR1",
    }
    for words, data in cases.items():
        with pytest.raises(FormatError, match=words):
            read_part(data, part, "x")
    nullable = pa.table([pa.array([1, None, 3, 4], pa.int32())], names=["value"])
    with pytest.raises(FormatError):
        read_part(forged(part, nullable), part, "x")


def test_a_file_that_unpacks_to_more_than_a_part_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = Part("mask", "binary", "0" * 32, 0, 1)
    data = part_file(pa.array([bytes(3 << 20)], pa.binary()), part)
    assert len(data) < 10_000
    monkeypatch.setattr(column_file, "PART_BYTES", 1 << 20)
    with pytest.raises(FormatError, match="unpacks to"):
        read_part(data, part, "x")


@pytest.mark.parametrize("kind", ["binary", "string", "coefficients"])
def test_a_value_that_costs_nothing_to_repeat_is_refused(kind: str) -> None:
    """A dictionary of one value of 1 MB, named 20,000 times by 2 KB: 20 GB."""
    rows = 20_000
    part = Part("mask", kind, "0" * 32, 0, rows)
    places, value = pa.array(np.zeros(rows, np.int32)), pa.array([bytes(1 << 20)], pa.binary())
    values = pa.DictionaryArray.from_arrays(places, value)
    if kind == "coefficients":
        small = pa.array(np.zeros(rows), pa.int32())
        words = pa.DictionaryArray.from_arrays(places, pa.array(["dc"]))
        columns = [words, small, small, small.cast(pa.int64()), values]
        schema = coefficient_file._SCHEMA
    else:
        columns, schema = [values], pa.schema([pa.field("value", arrow_type(kind), False)])
    fields = [
        pa.field(one.name, pa.dictionary(pa.int32(), one.type), nullable=False)
        if pa.types.is_dictionary(column.type)
        else one
        for one, column in zip(schema, columns, strict=True)
    ]
    columns = [column.cast(one.type) for column, one in zip(columns, fields, strict=True)]
    table = pa.Table.from_arrays(columns, schema=pa.schema(fields))
    with pytest.raises(FormatError, match="has a dictionary"):
        read_part(forged(part, table, dictionary=True, row_group_size=rows), part, "x")
