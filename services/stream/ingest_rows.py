"""Rows of a shard-to-be, and the columns beside it, as an actor of an ingest gathers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from services.shards.coefficient_stats import add_stats, count_coefficients
from services.shards.coefficients import sparse, to_rows
from services.shards.column_file import arrow_type
from services.shards.columns import write_values
from services.shards.store import open_store
from services.shards.writer import ShardResult, write_shard
from services.sources.sample import PictureSource, Sample
from services.stream.ingest_config import IngestConfig
from services.tokens.dct import PLANES
from services.types import (
    CAPTION_COLUMN,
    COEFFICIENT_COLUMN,
    MASK_COLUMN,
    FloatArray,
    IdArray,
    TokenRows,
)
from services.wire.seit import v1 as wire


class Encoded(NamedTuple):
    """A picture's tokens (h, w), and its coefficients (D, h, w), whole numbers, if it has any."""

    ids: IdArray
    coefficients: FloatArray | None = None


class Loaded(NamedTuple):
    """A sample's file: its size in bytes, its hash, its split, and the mask as it is stored."""

    size: int
    digest: int
    split: str
    mask: bytes = b""


@dataclass
class Pending:
    """Rows of one split that no shard holds yet."""

    samples: list[Sample] = field(default_factory=list)
    loaded: list[Loaded] = field(default_factory=list)
    ids: list[IdArray] = field(default_factory=list)
    coefficients: list[bytes] = field(default_factory=list)
    stats: wire.CoefficientStats | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def add(self, sample: Sample, loaded: Loaded, encoded: Encoded) -> None:
        """One row; what it was made of is let go."""
        self.samples.append(replace(sample, picture=b""))
        self.loaded.append(loaded)
        self.ids.append(encoded.ids)
        if encoded.coefficients is not None:
            maps = encoded.coefficients[None]
            self.coefficients += to_rows(sparse(maps, maps.shape[1] // PLANES))
            counted = count_coefficients(maps)
            self.stats = add_stats([self.stats, counted] if self.stats else [counted])

    def write(
        self, config: IngestConfig, source: PictureSource, split: str, spec: wire.TokenSpec
    ) -> ShardResult:
        """Write the shard of all rows, with its columns."""
        rows = TokenRows(
            ids=np.stack(self.ids),
            labels=np.array([one.label for one in self.samples], np.int64),
            keys=[one.key for one in self.samples],
            source_bytes=np.array([one.size for one in self.loaded], np.int64),
        )
        store, level = open_store(config.root), config.compression_level
        result = write_shard(store, config.dataset, split, rows, spec, level)
        columns = list[wire.Column]()
        if source.mask_classes is not None:
            masks = [one.mask for one in self.loaded]
            columns += _write_column(config, result.shard, MASK_COLUMN, "binary", masks)
        if source.captions:
            captions = [one.caption.encode() for one in self.samples]
            columns += _write_column(config, result.shard, CAPTION_COLUMN, "string", captions)
        if self.coefficients:
            kind, values = "coefficients", self.coefficients
            columns += _write_column(config, result.shard, COEFFICIENT_COLUMN, kind, values)
        hashes = np.array([one.digest for one in self.loaded], np.uint64)
        shard = replace(result.shard, columns=columns)
        return replace(result, shard=shard, picture_hashes=hashes, coefficients=self.stats)


def _write_column(
    config: IngestConfig, shard: wire.Shard, name: str, kind: str, values: Sequence[bytes]
) -> list[wire.Column]:
    """Entries of the files of a shard's values, which are written here."""

    def take(start: int, stop: int) -> Any:
        return pa.array(values[start:stop], pa.binary()).cast(arrow_type(kind))

    folder = open_store(config.root).child(config.dataset)
    sizes = np.array([len(value) for value in values], np.int64)
    return write_values(folder, shard, name, kind, sizes, take)
