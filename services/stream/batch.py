"""One rank's share of a step, as tensors for a trainer and as an Arrow table on its way there.

Every column has exactly `share_rows` rows, missing ones included, so that a pipeline never has to
cut or join tables: a table's rows are a whole number of shares.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from services.errors import FormatError
from services.types import IntArray

_META = b"seit.inputs"


@dataclass
class StreamBatch:
    """What a trainer receives for one step.

    step: position in the run, from 0. epoch: the epoch of all its rows.
    rows: (N,) int64 row numbers within the split; -1 where the row does not exist.
    inputs: (N, h, w) int64 ids, or (N, D, h, w) float embeddings.
    label, label_b: (N,) int64; mix: (N,) float32, the share of `label` in the soft target.
    weight: (N,) float32, 0 for rows that do not exist, else 1.
    """

    step: int
    epoch: int
    rows: IntArray
    inputs: Tensor
    label: Tensor
    label_b: Tensor
    mix: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> StreamBatch:
        """The same batch with its tensors on `device`; the row numbers stay in numpy.

        Embeddings travel as bfloat16 and widen to float32 only here, on the device.
        """
        moved = {
            f.name: value.to(device, non_blocking=non_blocking)
            if isinstance(value := getattr(self, f.name), Tensor)
            else value
            for f in fields(self)
        }
        batch = StreamBatch(**moved)
        if batch.inputs.is_floating_point():
            batch.inputs = batch.inputs.float()
        return batch

    def pin(self) -> StreamBatch:
        """The same batch in page-locked memory, from which copies to a GPU run asynchronously."""
        pinned = {
            f.name: value.pin_memory()
            if isinstance(value := getattr(self, f.name), Tensor)
            else value
            for f in fields(self)
        }
        return StreamBatch(**pinned)


def pack(
    step: int,
    epoch: int,
    rows: IntArray,
    inputs: npt.NDArray[np.generic] | Tensor,
    **columns: npt.NDArray[np.generic],
) -> pa.Table:
    """An Arrow table of one share; `inputs` (N, ...) travels as fixed-size binary, uncopied.

    inputs: uint16 ids, or a bfloat16 tensor of embeddings (numpy has no such type).
    """
    count = len(rows)
    if isinstance(inputs, Tensor):
        dtype = str(inputs.dtype).removeprefix("torch.")
        flat = np.ascontiguousarray(inputs.contiguous().view(torch.int16).numpy())
    else:
        flat = np.ascontiguousarray(inputs)
        dtype = flat.dtype.name
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


def inputs_of(table: pa.Table) -> Tensor | npt.NDArray[np.uint16]:
    """The `inputs` column (N, ...): uint16 ids as an array, embeddings as a bfloat16 tensor.

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
    shape = (len(whole), *described["shape"])
    if described["dtype"] == "bfloat16":
        return torch.from_numpy(raw.view(np.int16).copy()).view(torch.bfloat16).reshape(shape)
    return raw.view(np.uint16).reshape(shape)


def numbers(table: pa.Table, name: str) -> npt.NDArray[np.generic]:
    """A numeric column as an array (N,)."""
    values: npt.NDArray[np.generic] = table.column(name).to_numpy()
    return values


def position(table: pa.Table) -> tuple[int, int]:
    """(step, epoch) that a table of one share belongs to."""
    return table.column("step")[0].as_py(), table.column("epoch")[0].as_py()


def unpack(table: pa.Table) -> StreamBatch:
    """The trainer's view of an augmented share."""
    step, epoch = position(table)
    inputs = inputs_of(table)
    # ids travel as uint16; models index with int64
    tensor = inputs if isinstance(inputs, Tensor) else torch.from_numpy(inputs.astype(np.int64))
    rows = numbers(table, "row").astype(np.int64)
    return StreamBatch(
        step=step,
        epoch=epoch,
        rows=rows,
        inputs=tensor,
        label=torch.from_numpy(numbers(table, "label").astype(np.int64)),
        label_b=torch.from_numpy(numbers(table, "label_b").astype(np.int64)),
        mix=torch.from_numpy(numbers(table, "mix").astype(np.float32)),
        weight=torch.from_numpy((rows >= 0).astype(np.float32)),
    )
