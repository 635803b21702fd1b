"""Programs of the fault tests: writers and cache users that run in processes of their own."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import s3fs  # noqa: F401 - as objectstore does when it needs it; here before processes are forked

from services.shards.cache import ShardCache
from services.shards.manifest import commit, extend, load_manifest
from services.shards.store import Store
from services.shards.writer import ShardResult, build_split, write_shard
from services.types import TokenRows
from services.wire.seit import v1 as wire

SPEC = wire.TokenSpec(grid_height=4, grid_width=6, codes=391, channels=8)
SHARD_ROWS = 40

# Forks of one process that has all modules: a fresh interpreter would take seconds a kill.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


def rows_of(seed: int) -> TokenRows:
    """The rows of one shard; each value of them follows from the seed."""
    rng = np.random.default_rng(seed)
    return TokenRows(
        ids=rng.integers(0, SPEC.codes, (SHARD_ROWS, 4, 6)).astype(np.uint16),
        labels=rng.integers(-1, 3, SHARD_ROWS),
        keys=[f"{seed}/{row}.jpg" for row in range(SHARD_ROWS)],
        source_bytes=rng.integers(0, 10_000, SHARD_ROWS),
    )


def begin(root: Store, dataset: str, seed: int) -> None:
    """Version 1: one shard."""
    result = write_shard(root, dataset, "train", rows_of(seed), SPEC)
    split = build_split(root, dataset, "train", [result], SPEC.codes)
    manifest = wire.Manifest(dataset=dataset, spec=SPEC, tokenizer_kind="release", splits=[split])
    commit(root, manifest)


def append(root: Store, dataset: str, seed: int) -> None:
    """One more version with one more shard, whatever others commit meanwhile."""
    result = write_shard(root, dataset, "train", rows_of(seed), SPEC)
    add(root, dataset, result, f"seed {seed}")


def append_rows(root: Store, dataset: str, blocks: Sequence[TokenRows]) -> None:
    """One more version for each of the blocks."""
    for number, rows in enumerate(blocks):
        add(root, dataset, write_shard(root, dataset, "train", rows, SPEC), f"block {number}")


def add(root: Store, dataset: str, result: ShardResult, message: str) -> None:
    split = build_split(root, dataset, "train", [result], SPEC.codes)
    commit(
        root,
        extend(root, load_manifest(root, dataset), [split], message),
        rebase=lambda newest: extend(root, newest, [split], message),
    )


def append_all(root: Store, dataset: str, seeds: Sequence[int]) -> None:
    for seed in seeds:
        append(root, dataset, seed)


def append_forever(root: Store, dataset: str, first_seed: int, ready: Connection) -> None:
    """Append once, tell it, and append until killed."""
    append(root, dataset, first_seed)
    ready.send("go")
    for seed in itertools.count(first_seed + 1):
        append(root, dataset, seed)


def use_cache_forever(
    root: Store, folder: Path, limit: int, shards: Sequence[wire.Shard], ready: Connection
) -> None:
    """Tell that it begins, then fetch, evict and read until killed."""
    cache = ShardCache(folder, limit)
    ready.send("go")
    for shard in itertools.cycle(shards):
        cache.rows(root, "ds", shard, SPEC).take(np.arange(SHARD_ROWS))
