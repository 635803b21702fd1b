"""One rank's share of a step as tensors, the form in which a trainer receives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from services.stream.account import Account
from services.stream.fetch import Share
from services.stream.table import Kind, head_of, inputs_of, masks_of, numbers, pack, unpack_share
from services.types import IntArray

_OF_ROWS = ("rows", "row_epochs", "inputs", "label", "label_b", "mix", "weight", "mask")


@dataclass
class StreamBatch:
    """What a trainer receives for one step.

    step: position in the run, from 0. epoch: of the step; in a mixture, the round of all sources.
    rows: (N,) int64 row numbers within the stream's sources; -1 where the row does not exist.
    row_epochs: (N,) int64, how often each row's source was gone through before: what draws for
        the row are keyed by.
    inputs: (N, h, w) ids, uint16 until they reach a device and int64 there, or (N, D, h, w)
        embeddings, bfloat16 and there float32; before augmentation also coefficients, int16.
    label, label_b: (N,) int64; mix: (N,) float32, the share of `label` in the soft target.
    weight: (N,) float32, 0 for rows that do not exist, else 1.
    account: what it cost to make.
    mask: (N, h, w) uint8 classes of pixels, `services.types.IGNORED` where there is none; None
        where rows have no masks.
    """

    step: int
    epoch: int
    rows: IntArray
    row_epochs: IntArray
    inputs: Tensor
    label: Tensor
    label_b: Tensor
    mix: Tensor
    weight: Tensor
    account: Account = field(default_factory=Account)
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> StreamBatch:
        """The same batch with its tensors on `device`; what belongs to rows stays in numpy.

        Inputs travel in 16 bits and widen only here, on the device.
        """
        batch = self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        if batch.inputs.dtype == torch.uint16:
            batch.inputs = batch.inputs.long()
        elif batch.inputs.is_floating_point():
            batch.inputs = batch.inputs.float()
        return batch

    def pin(self) -> StreamBatch:
        """The same batch in page-locked memory, from which copies to a GPU run asynchronously.

        What is on a GPU already stays there.
        """
        return self._map(lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())

    def part(self, start: int, stop: int) -> StreamBatch:
        """Its rows [start, stop), as views."""
        values = {name: getattr(self, name) for name in _OF_ROWS}
        cut = {name: value[start:stop] for name, value in values.items() if value is not None}
        return replace(self, **cut)

    def parts(self, count: int) -> list[StreamBatch]:
        """All of it, cut into `count` parts of nearly equal size; one for each row at most."""
        bounds = [len(self) * part // count for part in range(count + 1)]
        return [self] if count == 1 else [self.part(a, b) for a, b in pairwise(bounds)]

    def _map(self, change: Callable[[Tensor], Tensor]) -> StreamBatch:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: change(v) for name, v in values.items() if isinstance(v, Tensor)}
        return StreamBatch(**{**values, **tensors})


def of_share(share: Share) -> StreamBatch:
    """A share that fetching cut already, as it is."""
    label = torch.from_numpy(share.label)
    return StreamBatch(
        step=share.step,
        epoch=share.epoch,
        rows=share.rows,
        row_epochs=share.row_epochs,
        inputs=torch.from_numpy(share.ids if share.maps is None else share.maps),
        label=label,
        label_b=label,
        mix=torch.ones(len(label)),
        weight=_weight(share.rows),
        account=share.account,
        mask=None if share.masks is None else torch.from_numpy(share.masks),
    )


def pack_batch(batch: StreamBatch) -> pa.Table:
    """An augmented share as a table, for `unpack_batch` in another process."""
    inputs = batch.inputs
    kind: Kind = "uint16"
    if inputs.dtype == torch.bfloat16:
        inputs, kind = inputs.view(torch.int16), "bfloat16"
    return pack(
        batch.step,
        batch.epoch,
        batch.account,
        inputs.numpy(),
        kind,
        None if batch.mask is None else batch.mask.numpy(),
        row=batch.rows,
        row_epoch=batch.row_epochs,
        label=batch.label.numpy(),
        label_b=batch.label_b.numpy(),
        mix=batch.mix.numpy(),
    )


def unpack_batch(table: pa.Table) -> StreamBatch:
    """The batch of a table from `pack_batch`, or of a share that fetching cut already.

    In memory of its own: the table's may be shared.
    """
    if "mix" not in table.column_names:
        return of_share(unpack_share(table))
    head = head_of(table)
    inputs = torch.from_numpy(inputs_of(table, head).copy())
    masks = masks_of(table, head)
    rows = numbers(table, "row")
    return StreamBatch(
        step=head.step,
        epoch=head.epoch,
        rows=rows,
        row_epochs=numbers(table, "row_epoch"),
        inputs=inputs.view(torch.bfloat16) if head.kind == "bfloat16" else inputs,
        label=torch.from_numpy(numbers(table, "label")),
        label_b=torch.from_numpy(numbers(table, "label_b")),
        mix=torch.from_numpy(numbers(table, "mix")),
        weight=_weight(rows),
        account=head.account,
        mask=None if masks is None else torch.from_numpy(masks.copy()),
    )


def _weight(rows: IntArray) -> Tensor:
    return torch.from_numpy((rows >= 0).astype(np.float32))
