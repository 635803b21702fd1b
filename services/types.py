"""Values that cross rooms. Leaf module: imports nothing inside the project.

Shape letters used throughout the project: N or B rows, H and W grid rows and columns (tokens),
T = H*W tokens, K codes, D channels of a code, C pixel channels, P patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IdArray = npt.NDArray[np.uint16]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
MaskArray = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]

UNLABELLED = -1
"""Label of a row that has none."""

IGNORED = 255
"""Value of a mask's pixels that have no class; classes are 0 to 254."""

MASK_COLUMN = "mask"
"""Column of a dataset in which masks stand, one PNG file a row (docs/format.md)."""

CAPTION_COLUMN = "caption"
"""Column of a dataset in which captions of pictures stand, "" where one has none."""

COEFFICIENT_COLUMN = "dct"
"""Column of a dataset in which DCT coefficients of pictures stand (docs/format.md)."""

MAX_CODES = 65_536
"""Largest codebook: ids travel as uint16."""

MAX_GRID = 128
"""Largest side of a token grid."""


@dataclass(frozen=True)
class TokenRows:
    """Rows of tokens in memory, in one order.

    ids: (N, H, W) uint16, 0 <= id < K.
    labels: (N,) int64, `UNLABELLED` where there is none.
    keys: N names of the source pictures, unique within a split by convention.
    source_bytes: (N,) int64, size of the original image files, 0 where not known.
    """

    ids: IdArray
    labels: IntArray
    keys: Sequence[str]
    source_bytes: IntArray

    def __post_init__(self) -> None:
        rows = len(self.ids)
        if self.ids.ndim != 3 or self.ids.dtype != np.uint16:
            raise ValueError(f"ids must be (N, H, W) uint16, got {self.ids.shape} {self.ids.dtype}")
        if not rows == len(self.labels) == len(self.keys) == len(self.source_bytes):
            raise ValueError(
                f"columns of different length: {rows} ids, {len(self.labels)} labels, "
                f"{len(self.keys)} keys, {len(self.source_bytes)} source_bytes"
            )

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Span:
    """One block of a step, as the plan orders it: rows that travel, and are paired, together.

    step: position in the run, counted from 0 over all epochs.
    slot: which block of the step this is, 0 <= slot < blocks of a step.
    epoch: the epoch that the block belongs to. A step never straddles two, but in a mixture each
        dataset has its own.
    rows: (B,) int64, row numbers within the split; -1 where the row does not exist (weight 0).
    """

    step: int
    slot: int
    epoch: int
    rows: IntArray
