"""Real datasets of a few rows with masks, written as ingest writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from services.masks import encode_mask
from services.shards.column_file import arrow_type
from services.shards.columns import write_values
from services.shards.manifest import LoadedManifest, commit, put_asset
from services.shards.store import Store
from services.shards.writer import build_split, write_shard
from services.tokens.codebook import Codebook
from services.types import IGNORED, MASK_COLUMN, IdArray, MaskArray, TokenRows
from services.wire.seit import v1 as wire

PIXELS = 3  # along the side of a token
SPEC = wire.TokenSpec(
    grid_height=8, grid_width=8, codes=32, channels=8, image_height=24, image_width=24
)
CLASSES = ("sky", "sea", "land")


@dataclass(frozen=True)
class Masked:
    """A dataset's training rows in the order of the split: ids (N, 8, 8), masks (N, 24, 24)."""

    ids: IdArray
    masks: MaskArray
    committed: LoadedManifest


def codebook() -> Codebook:
    return Codebook(torch.randn(32, 8, generator=torch.Generator().manual_seed(0)))


def make_rows(rng: np.random.Generator, rows: int) -> tuple[IdArray, MaskArray]:
    """Grids of regions, whose masks follow from the ids: class = id % 3; a tenth has no class."""
    corners = rng.integers(0, SPEC.codes, (rows, 2, 2))
    ids = corners.repeat(4, 1).repeat(4, 2).astype(np.uint16)
    masks = (ids % len(CLASSES)).astype(np.uint8).repeat(PIXELS, 1).repeat(PIXELS, 2)
    masks[rng.random(masks.shape) < 0.1] = IGNORED
    return ids, masks


def write_masked(
    root: Store,
    name: str = "scenes",
    counts: Sequence[int] = (9, 16, 7),
    *,
    masked: bool = True,
    classes: Sequence[str] = CLASSES,
) -> Masked:
    """Commit a version with shards of `counts` rows, and one of 5 rows in validation."""
    rng = np.random.default_rng(2)
    splits: dict[str, list[wire.Split]] = {}
    found: list[tuple[IdArray, MaskArray]] = []
    for split, sizes in (("train", counts), ("validation", (5,))):
        results = []
        for number, count in enumerate(sizes):
            ids, masks = make_rows(rng, count)
            rows = TokenRows(
                ids=ids,
                labels=np.full(count, -1),
                keys=[f"{split}/{number}/{row}.png" for row in range(count)],
                source_bytes=np.full(count, 700, np.int64),
            )
            result = write_shard(root, name, split, rows, SPEC)
            data = [encode_mask(mask) for mask in masks]

            def take(start: int, stop: int, data: list[bytes] = data) -> pa.Array:
                return pa.array(data[start:stop], arrow_type("binary"))

            if masked:
                sizes_N = np.array([len(one) for one in data], np.int64)
                columns = write_values(
                    root.child(name), result.shard, MASK_COLUMN, "binary", sizes_N, take
                )
                result = replace(result, shard=replace(result.shard, columns=columns))
            results.append(result)
            found.append((ids, masks))
        splits[split] = [build_split(root, name, split, results, SPEC.codes)]
    committed = commit(
        root,
        wire.Manifest(
            dataset=name,
            spec=SPEC,
            tokenizer_kind="vitvqgan",
            assets=[put_asset(root, name, "codebook", codebook().to_bytes())],
            classes=list(classes),
            splits=[*splits["train"], *splits["validation"]],
        ),
    )
    parts = found[: len(counts)]
    return Masked(
        np.concatenate([ids for ids, _ in parts]),
        np.concatenate([masks for _, masks in parts]),
        committed,
    )
