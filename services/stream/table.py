"""One rank's share of a step as an Arrow table, on its way from storage to a trainer.

Every share has exactly the same number of rows, missing ones included, so that a pipeline never
has to cut or join tables: a table's rows are a whole number of shares. No torch in here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from services.errors import FormatError
from services.shards.coefficients import CoefficientArray
from services.stream.account import Account
from services.stream.fetch import Share
from services.types import MaskArray

Kind = Literal["uint16", "bfloat16"]


@dataclass(frozen=True)
class Head:
    """What a share says about itself, in the column `head` of its first row.

    Not in the schema's metadata, which is one for a whole block of several shares.
    shape: of one row's inputs. kind: what their 16-bit words stand for. mask: shape of one row's
    mask, () without masks. map: of one row's coefficients, likewise.
    """

    step: int
    epoch: int
    shape: tuple[int, ...]
    kind: Kind
    account: Account
    mask: tuple[int, ...] = ()
    map: tuple[int, ...] = ()


def pack(
    step: int,
    epoch: int,
    account: Account,
    inputs: npt.NDArray[Any],
    kind: Kind,
    masks: MaskArray | None = None,
    maps: CoefficientArray | None = None,
    **columns: npt.NDArray[Any],
) -> pa.Table:
    """An Arrow table of one share; `inputs` (N, ...), `masks` (N, h, w) and `maps`
    (N, D, H, W) travel as fixed-size binary, uncopied.

    kind: numpy has no bfloat16, which travels as int16.
    """
    count = len(inputs)
    mask = () if masks is None else masks.shape[1:]
    whole = () if maps is None else maps.shape[1:]
    head_said = Head(step, epoch, inputs.shape[1:], kind, account, mask, whole)
    said = json.dumps(asdict(head_said)).encode()
    offsets = np.full(count + 1, len(said), np.int32)
    offsets[0] = 0
    head = pa.Array.from_buffers(
        pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(said)]
    )
    arrays = {name: pa.array(value) for name, value in columns.items()}
    if masks is not None:
        arrays["mask"] = _binary(masks)
    if maps is not None:
        arrays["map"] = _binary(maps)
    return pa.table({"head": head, "inputs": _binary(inputs), **arrays})


def _binary(values: npt.NDArray[Any]) -> pa.FixedSizeBinaryArray:
    """(N, ...) as N values of fixed size, in the array's own memory."""
    flat = np.ascontiguousarray(values)
    width = flat.dtype.itemsize * int(np.prod(flat.shape[1:]))
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(flat), [None, pa.py_buffer(flat)]
    )


def head_of(table: pa.Table) -> Head:
    """What the table's one share says about itself. FormatError if it does not begin with one."""
    said = table.column("head")[0].as_py()
    if not said:
        raise FormatError(
            "a stream table does not begin with the first row of a share: its batches were cut"
            " elsewhere than they were made"
        )
    raw = json.loads(said)
    told = raw.pop("account")
    account = Account(**{**told, "lost": tuple(told["lost"])})
    return Head(account=account, **{**raw, **{n: tuple(raw[n]) for n in ("shape", "mask", "map")}})


def inputs_of(table: pa.Table, head: Head) -> npt.NDArray[Any]:
    """The `inputs` column (N, ...) in 16-bit words.

    A view of the table's memory where that is whole; treat it as read-only.
    """
    words = _raw(table, "inputs").view(np.uint16 if head.kind == "uint16" else np.int16)
    return words.reshape(len(table), *head.shape)


def masks_of(table: pa.Table, head: Head) -> MaskArray | None:
    """The masks (N, h, w) uint8, if there are any; memory as `inputs_of`."""
    return _raw(table, "mask").reshape(len(table), *head.mask) if head.mask else None


def maps_of(table: pa.Table, head: Head) -> CoefficientArray | None:
    """The coefficients (N, D, H, W) int16, if there are any; memory as `inputs_of`."""
    if not head.map:
        return None
    return _raw(table, "map").view(np.int16).reshape(len(table), *head.map)


def _raw(table: pa.Table, name: str) -> npt.NDArray[np.uint8]:
    """The bytes of a column of fixed size."""
    chunks = table.column(name)
    whole = chunks.chunk(0) if chunks.num_chunks == 1 else pa.concat_arrays(chunks.chunks)
    width = whole.type.byte_width
    start = whole.offset * width
    return np.frombuffer(whole.buffers()[1], np.uint8)[start : start + len(whole) * width]


def numbers(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """A numeric column as an array (N,), a copy."""
    values: npt.NDArray[Any] = table.column(name).to_numpy().copy()
    return values


def pack_share(share: Share) -> pa.Table:
    """A fetched share as a table; `services.stream.batch.unpack_batch` reads it, too."""
    return pack(
        share.step,
        share.epoch,
        share.account,
        share.ids,
        "uint16",
        share.masks,
        share.maps,
        row=share.rows,
        row_epoch=share.row_epochs,
        label=share.label,
    )


def unpack_share(table: pa.Table) -> Share:
    """The inverse of `pack_share`, in memory of its own: the table's may be shared."""
    head = head_of(table)
    masks, maps = masks_of(table, head), maps_of(table, head)
    return Share(
        step=head.step,
        epoch=head.epoch,
        rows=numbers(table, "row"),
        row_epochs=numbers(table, "row_epoch"),
        ids=inputs_of(table, head).copy(),
        label=numbers(table, "label"),
        account=head.account,
        masks=None if masks is None else masks.copy(),
        maps=None if maps is None else maps.copy(),
    )
