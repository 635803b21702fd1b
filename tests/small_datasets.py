"""Real datasets of a few rows, written as ingest writes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from services.shards.manifest import LoadedManifest, commit, put_asset
from services.shards.store import Store
from services.shards.writer import ShardResult, build_split, write_shard
from services.types import TokenRows
from services.wire.seit import v1 as wire

SPEC = wire.TokenSpec(
    grid_height=4, grid_width=6, codes=16, channels=8, image_height=32, image_width=48
)


def write_dataset(
    root: Store,
    name: str = "digits",
    *,
    shards: int = 3,
    rows: int = 5,
    seed: int = 0,
    spec: wire.TokenSpec = SPEC,
    codebook: bytes = b"not read by what is tested here",
    sole_writer: bool = False,
) -> LoadedManifest:
    """Commit a version: `shards` shards of `rows` rows in train, one of 2 rows in validation.

    sole_writer: for a server whose conditional writes are not atomic, as moto's.
    """
    generator = np.random.default_rng(seed)

    def write(split: str, number: int, count: int) -> ShardResult:
        made = TokenRows(
            # squared, so that codes differ in how often they occur
            ids=(
                generator.random((count, spec.grid_height, spec.grid_width)) ** 2 * spec.codes
            ).astype(np.uint16),
            labels=np.arange(count, dtype=np.int64) % 3,
            keys=[f"{split}/{seed}/{number}/{row}.png" for row in range(count)],
            source_bytes=np.full(count, 700, np.int64),
        )
        return write_shard(root, name, split, made, spec)

    train = [write("train", number, rows) for number in range(shards)]
    validation = [write("validation", 0, 2)]
    return commit(
        root,
        wire.Manifest(
            dataset=name,
            spec=replace(spec),
            tokenizer_kind="vitvqgan",
            assets=[put_asset(root, name, "codebook", codebook)],
            classes=["zero", "one", "[red]two"],
            splits=[
                build_split(root, name, "train", train, spec.codes),
                build_split(root, name, "validation", validation, spec.codes),
            ],
            skipped=[wire.Skipped(path="a/broken.png", reason="no picture\x1b[2J")],
            message=f"seed {seed}",
        ),
        sole_writer=sole_writer,
    )
