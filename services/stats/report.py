"""Answers that one manifest holds: pure functions from wire messages to wire messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.shards.coefficient_stats import add_stats
from services.types import COEFFICIENT_COLUMN
from services.wire.seit import v1 as wire

PIXEL_CHANNELS = 3
"""Channels of an uncompressed picture, one byte each: what the tokens are compared with."""


def summarize(manifest: wire.Manifest) -> wire.DatasetSummary:
    """One line about a dataset version."""
    spec = manifest.spec
    assert spec is not None  # `load_manifest` refuses a manifest without one
    size = _sizes(manifest.splits)
    pixels = size.rows * spec.image_height * spec.image_width * PIXEL_CHANNELS
    return wire.DatasetSummary(
        name=manifest.dataset,
        version=manifest.version,
        created=manifest.created,
        rows=size.rows,
        shards=size.shards,
        bytes=size.stored,
        source_bytes=size.source,
        bytes_per_image=_ratio(size.stored, size.rows),
        share_of_source=_ratio(size.stored, size.source),
        spec=spec,
        tokenizer_kind=manifest.tokenizer_kind,
        splits=[split.name for split in manifest.splits],
        classes=len(manifest.classes),
        pixel_bytes=pixels,
        share_of_pixels=_ratio(size.stored, pixels),
        message=manifest.message,
    )


def storage_report(manifest: wire.Manifest) -> wire.StorageReport:
    """Bytes of each split and of all together, against the sources, the pixels and the entropy."""
    return wire.StorageReport(
        dataset=manifest.dataset,
        version=manifest.version,
        splits=[_storage(manifest, split.name, [split]) for split in manifest.splits],
        total=_storage(manifest, "total", manifest.splits),
    )


def _storage(manifest: wire.Manifest, name: str, splits: Sequence[wire.Split]) -> wire.SplitStorage:
    spec = manifest.spec
    assert spec is not None  # `load_manifest` refuses a manifest without one
    size = _sizes(splits)
    pixels = size.rows * spec.image_height * spec.image_width * PIXEL_CHANNELS
    counts = np.zeros(spec.codes, np.float64)  # [K]
    for split in splits:
        counts += split.code_counts
    entropy, used = entropy_bits(counts), int(np.count_nonzero(counts))
    return wire.SplitStorage(
        split=name,
        rows=size.rows,
        shards=size.shards,
        bytes=size.stored,
        source_bytes=size.source,
        bytes_per_image=_ratio(size.stored, size.rows),
        share_of_source=_ratio(size.stored, size.source),
        entropy_bits=entropy,
        entropy_bytes_per_image=entropy * spec.grid_height * spec.grid_width / 8,
        pixel_bytes=pixels,
        share_of_pixels=_ratio(size.stored, pixels),
        used_codes=used,
        dead_codes=spec.codes - used,
        duplicate_rows=_known_sum([s.duplicate_rows if s.shards else 0 for s in splits]),
        duplicate_pictures=_known_sum([s.duplicate_pictures if s.shards else 0 for s in splits]),
        column_bytes=size.columns,
        **_coefficients(splits),
    )


@dataclass(frozen=True)
class _Sizes:
    rows: int
    shards: int
    stored: int
    source: int
    columns: int


def _sizes(splits: Sequence[wire.Split]) -> _Sizes:
    """Sums over splits; a file that stands in several of them is stored, and counts, once."""
    shards = [shard for split in splits for shard in split.shards]
    files = {shard.path: shard for shard in shards}.values()
    columns = {part.path: part.bytes for shard in shards for part in shard.columns}
    return _Sizes(
        rows=sum(shard.rows for shard in shards),
        shards=len(shards),
        stored=sum(shard.bytes for shard in files),
        source=sum(shard.source_bytes for shard in files),
        columns=sum(columns.values()),
    )


def _coefficients(splits: Sequence[wire.Split]) -> dict[str, Any]:
    """Bytes of the coefficients of all rows, and how many of them are not 0; {} without."""
    shards = [shard for split in splits for shard in split.shards]
    files = {c.path: c for shard in shards for c in shard.columns if c.name == COEFFICIENT_COLUMN}
    stats = add_stats([split.coefficients for split in splits])
    if not files or stats is None:
        return {}
    rows = sum(shard.rows for shard in shards)
    return {
        "coefficient_bytes": sum(file.bytes for file in files.values()),
        "coefficients_per_image": _ratio(sum(stats.nonzeros), rows),
    }


def _known_sum(counts: Sequence[int | None]) -> int | None:
    """The sum, of duplicates within each split; None if one is not known."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def entropy_bits(counts: NDArray[np.float64]) -> float:
    """Order-0 entropy, in bits a token, of codes that occur `counts` (K,) times; 0 for none."""
    used = counts[counts > 0]
    if len(used) < 2:
        return 0.0
    share = used / used.sum()
    return float(-(share * np.log2(share)).sum())


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
