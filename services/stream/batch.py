"""One rank's share of a step as tensors, the form in which a trainer receives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from services.stream.table import inputs_of, numbers, position
from services.types import IntArray


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
        batch = self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        if batch.inputs.is_floating_point():
            batch.inputs = batch.inputs.float()
        return batch

    def pin(self) -> StreamBatch:
        """The same batch in page-locked memory, from which copies to a GPU run asynchronously."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> StreamBatch:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: change(v) for name, v in values.items() if isinstance(v, Tensor)}
        return StreamBatch(**{**values, **tensors})


def unpack(table: pa.Table) -> StreamBatch:
    """The trainer's view of an augmented share."""
    step, epoch = position(table)
    words, dtype = inputs_of(table)
    if dtype == "bfloat16":
        inputs = torch.from_numpy(words.copy()).view(torch.bfloat16)
    else:  # ids travel as uint16; models index with int64
        inputs = torch.from_numpy(words.astype(np.int64))
    rows = numbers(table, "row").astype(np.int64)
    return StreamBatch(
        step=step,
        epoch=epoch,
        rows=rows,
        inputs=inputs,
        label=torch.from_numpy(numbers(table, "label").astype(np.int64)),
        label_b=torch.from_numpy(numbers(table, "label_b").astype(np.int64)),
        mix=torch.from_numpy(numbers(table, "mix").astype(np.float32)),
        weight=torch.from_numpy((rows >= 0).astype(np.float32)),
    )
