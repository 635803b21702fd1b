"""One rank's share of a step as an Arrow table, on its way from storage to a trainer.

Every share has exactly the same number of rows, missing ones included, so that a pipeline never
has to cut or join tables: a table's rows are a whole number of shares. No torch in here.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from services.errors import FormatError
from services.types import IntArray

_META = b"seit.inputs"


def pack(
    step: int,
    epoch: int,
    rows: IntArray,
    inputs: npt.NDArray[Any],
    dtype: str = "uint16",
    **columns: npt.NDArray[Any],
) -> pa.Table:
    """An Arrow table of one share; `inputs` (N, ...) travels as fixed-size binary, uncopied.

    dtype: what the bytes of `inputs` stand for; numpy has no bfloat16, which travels as int16.
    """
    count = len(rows)
    flat = np.ascontiguousarray(inputs)
    width = flat.dtype.itemsize * int(np.prod(flat.shape[1:]))
    binary = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), count, [None, pa.py_buffer(flat)]
    )
    arrays = {
        "step": pa.array(np.full(count, step, np.int64)),
        "epoch": pa.array(np.full(count, epoch, np.int64)),
        "row": pa.array(rows),
        "inputs": binary,
        **{name: pa.array(value) for name, value in columns.items()},
    }
    meta = json.dumps({"shape": flat.shape[1:], "dtype": dtype}).encode()
    return pa.table(arrays).replace_schema_metadata({_META: meta})


def inputs_of(table: pa.Table) -> tuple[npt.NDArray[Any], str]:
    """(the `inputs` column (N, ...) in 16-bit words, what they stand for).

    A view of the table's memory where that is whole; treat it as read-only.
    """
    meta = (table.schema.metadata or {}).get(_META)
    if meta is None:
        raise FormatError("a stream table lost its description of `inputs`: metadata is missing")
    described = json.loads(meta)
    chunks = table.column("inputs")
    whole = chunks.chunk(0) if chunks.num_chunks == 1 else pa.concat_arrays(chunks.chunks)
    width = whole.type.byte_width
    start = whole.offset * width
    raw = np.frombuffer(whole.buffers()[1], np.uint8)[start : start + len(whole) * width]
    words = raw.view(np.uint16 if described["dtype"] == "uint16" else np.int16)
    return words.reshape(len(whole), *described["shape"]), described["dtype"]


def numbers(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """A numeric column as an array (N,)."""
    values: npt.NDArray[Any] = table.column(name).to_numpy()
    return values


def position(table: pa.Table) -> tuple[int, int]:
    """(step, epoch) that a table of one share belongs to."""
    return table.column("step")[0].as_py(), table.column("epoch")[0].as_py()
