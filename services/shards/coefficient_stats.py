"""Counts over coefficients: of the rows of a shard, and of several shards together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from services.wire.seit import v1 as wire


def count_coefficients(maps_NDhw: npt.NDArray[Any]) -> wire.CoefficientStats:
    """The counts over the maps, of whole numbers, of one row or more."""
    channels = maps_NDhw.transpose(1, 0, 2, 3).reshape(maps_NDhw.shape[1], -1)
    return wire.CoefficientStats(
        nonzeros=np.count_nonzero(channels, axis=1).tolist(),
        magnitudes=np.abs(channels.astype(np.int64)).sum(1).tolist(),
        low=int(maps_NDhw.min()),
        high=int(maps_NDhw.max()),
    )


def add_stats(parts: Sequence[wire.CoefficientStats | None]) -> wire.CoefficientStats | None:
    """The counts of all parts; None if there are none, or one does not know its own."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    return wire.CoefficientStats(
        nonzeros=np.sum([part.nonzeros for part in known], axis=0).tolist(),
        magnitudes=np.sum([part.magnitudes for part in known], axis=0).tolist(),
        low=min(part.low for part in known),
        high=max(part.high for part in known),
    )
