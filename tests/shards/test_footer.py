"""Whatever a footer says, it is an error at worst, where pyarrow would end the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import FormatError
from services.shards import layout
from services.shards.column_file import Part, part_file
from services.shards.footer import column_chunks
from services.types import TokenRows
from services.wire.seit import v1 as wire

SPEC = wire.TokenSpec(grid_height=2, grid_width=2, codes=4, channels=2)
PART = Part("c", "int32", "0" * 32, 0, 3)
MAKERS = {
    "shard": lambda: layout.to_parquet(
        TokenRows(np.zeros((3, 2, 2), np.uint16), np.zeros(3, int), list("abc"), np.zeros(3, int)),
        SPEC,
    ),
    "column": lambda: part_file(pa.array([1, 2, 3], pa.int32()), PART),
    "values": lambda: values_file(),
}
# Run apart: what is looked for is the end of the process.
READER = """
import sys, tempfile
from pathlib import Path
from services.errors import SeitError
from services.shards import layout
from services.shards.column_file import read_part
from services.shards.column_input import ColumnInput
from tests.shards.test_footer import PART, SPEC, footer_start

kind, good = sys.argv[1], Path(sys.argv[2]).read_bytes()
spoilt = Path(sys.argv[2] + ".spoilt")


def read(data):
    if kind == "shard":
        layout.read_rows(data, SPEC)
    elif kind == "column":
        read_part(data, PART, "part")
    else:
        spoilt.write_bytes(data)
        with ColumnInput(spoilt) as values:
            values.key_hashes()
            values.load()


for place in range(footer_start(good), len(good)):
    for bit in range(8):
        data = bytearray(good)
        data[place] ^= 1 << bit
        try:
            read(bytes(data))
        except SeitError:
            pass
print("alive")
"""


def values_file() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"key": ["a", "b", "c"], "value": [1, 2, 3]}), sink)
    return bytes(sink.getvalue())


def footer_start(data: bytes) -> int:
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


@pytest.mark.parametrize("kind", MAKERS)
def test_no_flipped_bit_of_a_footer_ends_the_process(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file.parquet"
    path.write_bytes(MAKERS[kind]())
    done = subprocess.run(
        [sys.executable, "-c", READER, kind, str(path)], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-2000:]


@pytest.mark.parametrize("kind", MAKERS)
def test_the_columns_are_those_that_pyarrow_sees(kind: str) -> None:
    data = MAKERS[kind]()
    group = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
    seen = [group.column(number) for number in range(group.num_columns)]
    told = [
        (one.path_in_schema, one.num_values, one.data_page_offset, one.total_compressed_size)
        for one in seen
    ]
    chunks = column_chunks(data)
    assert [(one.name, one.values, one.place, one.bytes) for one in chunks] == told
    assert [one.dictionary for one in chunks] == [one.has_dictionary_page for one in seen]


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.integers(0, 400))
def test_any_footer_is_read_or_refused(raw: bytes, place: int) -> None:
    data = MAKERS["shard"]()
    at = footer_start(data) + place
    spoilt = data[:at] + raw + data[min(at + len(raw), len(data) - 8) :]
    try:
        column_chunks(spoilt)
    except FormatError:
        return


def test_lists_in_lists_end_before_the_stack() -> None:
    nested = b"\x19" + b"\x19" * 100_000 + b"\0"
    data = b"PAR1" + nested + len(nested).to_bytes(4, "little") + b"PAR1"
    with pytest.raises(FormatError, match="cannot be read"):
        column_chunks(data)
