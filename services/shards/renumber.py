"""A dataset whose ids count only the codes that it uses, as the published release is (391 of 8192).

Fewer codes make a smaller model: embeddings, and the head of masked token modelling, have a row for
each. Ids keep their order; the original ones stand in the codebook (`Codebook.original`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from services.errors import InvalidInputError, NotFoundError
from services.shards import layout
from services.shards.checked import read_checked
from services.shards.manifest import (
    LoadedManifest,
    commit,
    load_manifest,
    put_asset,
    read_asset,
)
from services.shards.store import Store
from services.shards.threads import in_order
from services.shards.writer import ShardResult, build_split, write_shard
from services.tokens.codebook import Codebook, renumber, used_codes
from services.tokens.tokenizer import load_tokenizer, restrict, save_tokenizer
from services.types import IntArray, TokenRows
from services.wire.seit import v1 as wire

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Told the shards done and all shards, again and again."""

_WORKERS = 2  # each holds a shard


def renumber_dataset(
    root: Store,
    dataset: str,
    *,
    compression_level: int = layout.DEFAULT_COMPRESSION_LEVEL,
    progress: Progress | None = None,
) -> LoadedManifest | None:
    """Commit the next version, in which ids are positions among the codes that any split uses; None
    where that is all of them (or none, without a row): there is nothing to do then.

    Every shard is written anew, a few at a time; earlier versions stay. Its tokenizer, where it
    stands with the dataset, knows these codes alone, so that further pictures can be appended.

    Raises InvalidInputError where columns were added (they belong to the shards as they are);
    CommitConflictError if another version came meanwhile. Nothing is committed then.
    """
    loaded = load_manifest(root, dataset)
    manifest, codes = loaded.manifest, loaded.spec.codes
    used = used_codes(_counts(manifest, codes))
    if not 0 < len(used) < codes:
        return None
    _refuse_columns(manifest)
    assets = _narrow_assets(root, manifest, used)
    spec = replace(loaded.spec, codes=len(used))
    total = sum(len(split.shards) for split in manifest.splits)
    done = 0
    splits = []
    for split in manifest.splits:
        results = []
        for result in _rewritten(root, loaded, split, used, spec, compression_level):
            results.append(result)
            done += 1
            if progress is not None:
                progress(done, total)
        built = build_split(root, dataset, split.name, results, spec.codes)
        built.picture_hashes = split.picture_hashes  # the pictures stay the same
        built.duplicate_pictures = split.duplicate_pictures
        splits.append(built)
    return commit(
        root,
        replace(
            manifest,
            spec=spec,
            assets=assets,
            splits=splits,
            message=f"renumbered: the {len(used)} codes in use of {codes}",
            parent=loaded.digest,
            writer="",
        ),
    )


def _counts(manifest: wire.Manifest, codes: int) -> IntArray:
    counts = np.zeros(codes, np.int64)
    for split in manifest.splits:
        counts += np.array(split.code_counts, np.int64)
    return counts


def _refuse_columns(manifest: wire.Manifest) -> None:
    shards = [shard for split in manifest.splits for shard in split.shards]
    columns = {column.name for shard in shards for column in shard.columns}
    if columns:
        raise InvalidInputError(
            f"dataset {manifest.dataset!r} version {manifest.version} has the added columns"
            f" {', '.join(sorted(columns))}, which belong to its shards as they are: nothing was"
            " changed; drop them (seit drop-column), renumber, and add them again"
        )


def _narrow_assets(root: Store, manifest: wire.Manifest, used: IntArray) -> list[wire.Asset]:
    """Codebook and tokenizer of the used codes; what else was derived from all codes goes."""
    assets = []
    for asset in manifest.assets:
        data = read_asset(root, manifest.dataset, asset)
        if asset.kind == "codebook":
            narrow = Codebook.from_bytes(data).restrict(used).to_bytes()
        elif asset.kind == "tokenizer":
            narrow = save_tokenizer(restrict(load_tokenizer(data), used))
        else:
            logger.info("%s of all codes is left out of the next version", asset.kind)
            continue
        assets.append(put_asset(root, manifest.dataset, asset.kind, narrow))
    if not any(asset.kind == "codebook" for asset in assets):
        raise NotFoundError(
            f"dataset {manifest.dataset!r} version {manifest.version} has no codebook, so the ids'"
            " meaning would be lost: nothing was changed; ingest it again, or import the release"
        )
    return assets


def _rewritten(
    root: Store,
    loaded: LoadedManifest,
    split: wire.Split,
    used: IntArray,
    spec: wire.TokenSpec,
    level: int,
) -> Iterator[ShardResult]:
    """The shards of a split with other ids, in their order."""
    dataset = loaded.manifest.dataset
    folder = root.child(dataset)

    def rewrite(shard: wire.Shard) -> ShardResult:
        rows = layout.from_parquet(read_checked(folder, shard), loaded.spec)
        ids = renumber(rows.ids.astype(np.int64), used, loaded.spec.codes).astype(np.uint16)
        narrow = TokenRows(ids, rows.labels, rows.keys, rows.source_bytes)
        return write_shard(root, dataset, split.name, narrow, spec, level)

    yield from in_order((partial(rewrite, shard) for shard in split.shards), _WORKERS)
