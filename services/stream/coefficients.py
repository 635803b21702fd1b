"""DCT coefficients of a stream's rows, out of the datasets' column `dct`. Neither Ray nor torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.errors import FormatError, InvalidInputError
from services.shards.coefficients import CoefficientArray, dense, from_rows
from services.shards.reader import DatasetReader
from services.types import COEFFICIENT_COLUMN, IntArray


class Coefficients:
    """Reads maps of rows by source, shard and row, as `Sources` reads their ids.

    Raises: InvalidInputError where rows of a source have no coefficients.
    """

    def __init__(self, readers: Sequence[DatasetReader]) -> None:
        self._readers = readers
        for reader in readers:
            _check(reader)
        spec = readers[0].spec
        self.shape = spec.channels, spec.grid_height, spec.grid_width

    def take(self, source: IntArray, shard: IntArray, inside: IntArray) -> CoefficientArray:
        """(N, D, H, W) int16, 0 where the shard is -1.

        source, shard, inside: (N,) as `RowPlan.place` gives them.
        """
        maps = np.zeros((len(source), *self.shape), np.int16)
        for number in np.unique(source[shard >= 0]).tolist():
            own = np.flatnonzero((source == number) & (shard >= 0))
            reader = self._readers[number]
            stored = reader.column(COEFFICIENT_COLUMN, shard[own], inside[own])
            found = dense(from_rows([bytes(value) for value in stored]))
            if found.shape[1:] != self.shape:
                raise FormatError(
                    f"{reader.source.dataset}/{reader.split.name}: coefficients of the shape"
                    f" {found.shape[1:]}, the dataset's spec says {self.shape}: ingest it again"
                )
            maps[own] = found
        return maps

    def bring(self, source: int, shard: int) -> None:
        """Fetch a shard's coefficients into the node's cache, or find them there."""
        self._readers[source].bring_column(COEFFICIENT_COLUMN, shard)


def _check(reader: DatasetReader) -> None:
    kind = reader.column_types.get(COEFFICIENT_COLUMN, "")
    lacking = sum(
        shard.rows
        for shard in reader.split.shards
        if all(column.name != COEFFICIENT_COLUMN for column in shard.columns)
    )
    if lacking or kind != "coefficients":
        raise InvalidInputError(
            f"split {reader.split.name!r} of {reader.source.dataset!r} version"
            f" {reader.manifest.version}: {lacking} of {len(reader)} rows have no coefficients"
            f" (column {COEFFICIENT_COLUMN!r}): ingest the pictures with a tokenizer of"
            " trainers/tokenizer_dct.py, or leave out --augment.coefficients to read tokens"
        )
