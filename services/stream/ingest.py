"""Pictures to token shards, as a Ray Data job: one row a shard, tokenizer actors, manifest last.

Nothing of a run that fails is ever visible: shards carry the name of their content and stand
unseen until the manifest that names them is committed, which happens once, at the end.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from services.errors import CapacityError, InvalidInputError
from services.masks import check_sample, list_masked
from services.pictures import Picture, check_unreadable, list_pictures
from services.shards.manifest import (
    LoadedManifest,
    commit,
    extend,
    list_versions,
    load_manifest,
    named_files,
    put_asset,
)
from services.shards.store import absolute_url, open_store, read_url
from services.shards.writer import ShardResult, build_split
from services.stream.cluster import Flag, capacity, connect, reach
from services.stream.ingest_actor import SHARD, Listing, TokenizeActor
from services.stream.ingest_config import IngestConfig
from services.stream.pictures import picture_splits
from services.tokens.tokenizer import load_tokenizer
from services.types import MASK_COLUMN
from services.wire.seit import v1 as wire

__all__ = ["IngestConfig", "IngestReport", "ingest"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did. bytes: of shards. seconds: of the whole job."""

    committed: LoadedManifest
    rows: int
    shards: int
    bytes: int
    source_bytes: int
    skipped: Sequence[wire.Skipped]
    seconds: float


def ingest(
    config: IngestConfig, progress: Callable[[int, int], None] | None = None
) -> IngestReport:
    """Run the job and commit the new version.

    progress: called with (pictures done, pictures in all) whenever a shard stands.

    Raises: NotFoundError, InvalidInputError for bad input (nothing is written); InvalidInputError
    when more than 1 % of the pictures cannot be read (the shards written so far are removed).
    """
    began = time.monotonic()
    config = replace(
        config,
        images=absolute_url(config.images),
        masks=absolute_url(config.masks) if config.masks else "",
        mask_classes=absolute_url(config.mask_classes) if config.mask_classes else "",
        root=absolute_url(config.root),
        tokenizer=absolute_url(config.tokenizer),
    )
    root = open_store(config.root)
    standing = _standing(config)
    weights = read_url(config.tokenizer)
    tokenizer = load_tokenizer(weights)
    listing = _list(config, tokenizer.spec)
    _check_same(standing, tokenizer.spec, listing.classes)
    _check_masks(config, standing, listing)
    jobs = _jobs(listing.splits, config.rows_per_shard)
    total = sum(len(pictures) for pictures in listing.splits.values())

    connect()
    results: dict[str, list[tuple[int, ShardResult]]] = {name: [] for name in listing.splits}
    skipped: list[wire.Skipped] = []
    cancelled = Flag()
    rows = _run(config, listing, weights, jobs, cancelled)

    def collect(row: dict[str, Any]) -> int:
        skipped.extend(wire.Skipped(path=p, reason=r) for p, r in json.loads(row["skipped"]))
        if not row["shard"]:
            return 0
        counts = np.frombuffer(row["code_counts"], "<i8").astype(np.int64)
        hashes = np.frombuffer(row["grid_hashes"], "<u8").astype(np.uint64)
        shard = SHARD.validate_json(row["shard"])
        results[row["split"]].append((row["start"], ShardResult(shard, counts, hashes)))
        return shard.rows

    done = 0
    try:
        for row in rows:
            done += collect(row)
            reasons = [picture.reason for picture in skipped]
            check_unreadable(reasons, total, "pictures", "the job stopped and wrote nothing")
            if progress is not None:
                progress(done + len(skipped), total)
    except BaseException:
        # Shards under way are waited for, so that they can be taken back too; others never start.
        cancelled.set()
        for row in rows:
            collect(row)
        _remove(config, results)
        raise
    ordered = {name: sorted(found, key=lambda item: item[0]) for name, found in results.items()}
    built = [
        build_split(root, config.dataset, name, [one for _, one in found], tokenizer.spec.codes)
        for name, found in ordered.items()
        if found
    ]
    committed = _commit(config, tokenizer, weights, listing.classes, built, skipped, standing)
    shards = [shard for s in built for shard in s.shards]
    logger.info("ingested %d pictures of %d into %s", done, total, root.url)
    return IngestReport(
        committed=committed,
        rows=sum(s.rows for s in shards),
        shards=len(shards),
        bytes=sum(s.bytes for s in shards),
        source_bytes=sum(s.source_bytes for s in shards),
        skipped=skipped,
        seconds=time.monotonic() - began,
    )


def _list(config: IngestConfig, spec: wire.TokenSpec) -> Listing:
    """The folders' pictures, with their masks where those are asked for."""
    if not config.masks:
        found = list_pictures(config.images)
        splits = picture_splits(found.splits, config.validation_fraction, config.seed)
        return Listing(found.classes, splits)
    if spec.image_height % spec.grid_height or spec.image_width % spec.grid_width:
        raise InvalidInputError(
            f"the tokenizer makes {spec.grid_height}x{spec.grid_width} tokens of"
            f" {spec.image_height}x{spec.image_width} pixels: a token is no whole number of pixels,"
            " so masks could not be cut with it; use a tokenizer whose patch divides the picture"
        )
    masked = list_masked(config.images, config.masks, config.mask_classes)
    check_sample(masked)
    splits = picture_splits(masked.splits, config.validation_fraction, config.seed)
    return Listing(masked.classes.names, splits, masked.masks, masked.classes)


def _standing(config: IngestConfig) -> LoadedManifest | None:
    root = open_store(config.root)
    versions = list_versions(root, config.dataset)
    if not versions and config.mode == "append":
        raise InvalidInputError(
            f"there is no dataset {config.dataset!r} at {root.url} to append to; use --mode create"
        )
    if versions and config.mode == "create":
        raise InvalidInputError(
            f"dataset {config.dataset!r} stands at {root.url} with version {versions[-1]}; nothing"
            " was changed: use --mode append to add to it, --mode replace for a new version of the"
            " new pictures alone, or another name"
        )
    return load_manifest(root, config.dataset) if versions else None


def _check_same(
    standing: LoadedManifest | None, spec: wire.TokenSpec, classes: Sequence[str]
) -> None:
    """A version may change pictures, not what an id or a label means."""
    if standing is None:
        return
    old = standing.manifest
    if old.spec != spec:
        raise InvalidInputError(
            f"dataset {old.dataset!r} holds tokens of {old.spec}, the tokenizer makes {spec}: the"
            " rows could not be told apart; use the dataset's own tokenizer or another name"
        )
    if list(old.classes) != list(classes):
        raise InvalidInputError(
            f"dataset {old.dataset!r} has the classes {old.classes}, the pictures {list(classes)}:"
            " labels would change their meaning; use the same class folders or another name"
        )


def _check_masks(config: IngestConfig, standing: LoadedManifest | None, listing: Listing) -> None:
    """Rows of one version have masks or not; a run could not read half of it."""
    if config.mode != "append" or standing is None:
        return
    shards = [shard for split in standing.manifest.splits for shard in split.shards]
    masked = any(column.name == MASK_COLUMN for shard in shards for column in shard.columns)
    if masked != (listing.mask_classes is not None):
        has, lacks = ("masks", "no masks") if masked else ("no masks", "masks")
        raise InvalidInputError(
            f"dataset {config.dataset!r} has {has}, the pictures to append have {lacks}: nothing"
            " could train on both; append the same kind, or use another name"
        )


def _jobs(splits: dict[str, list[Picture]], rows: int) -> list[dict[str, Any]]:
    return [
        {"split": name, "start": at, "stop": min(at + rows, len(pictures))}
        for name, pictures in splits.items()
        for at in range(0, len(pictures), rows)
    ]


def _run(
    config: IngestConfig,
    listing: Listing,
    weights: bytes,
    jobs: list[dict[str, Any]],
    cancelled: Flag,
) -> Iterator[dict[str, Any]]:
    room = int(capacity("CPU") // config.cpus) - 1
    actors = min(config.actors or max(1, room), len(jobs))
    for kind, each in (("CPU", config.cpus), ("GPU", config.gpus)):
        if actors * each > reach(kind):
            raise CapacityError(
                f"{actors} actors of {each:g} {kind}s need {actors * each:g}; the cluster has at"
                f" most {reach(kind):g}, so the job would wait for ever: use fewer or smaller"
                " actors (--actors, --cpus, --gpus) or a larger cluster"
            )
    # One block a job, made here: no task that would need a CPU beside the actors'.
    listed = ray.data.from_arrow([pa.Table.from_pylist([job]) for job in jobs])
    dataset = listed.map_batches(
        TokenizeActor,
        batch_size=1,
        batch_format="numpy",
        fn_constructor_args=(config, ray.put(listing), weights, cancelled),
        compute=ActorPoolStrategy(size=actors),
        num_cpus=config.cpus,
        num_gpus=config.gpus or None,
    )
    dataset.context.enable_progress_bars = False
    rows: Iterator[dict[str, Any]] = iter(dataset.iter_rows())
    return rows


def _remove(config: IngestConfig, results: dict[str, list[tuple[int, ShardResult]]]) -> None:
    """Take back the shards of a run that failed, but for those that any version names."""
    root = open_store(config.root)
    versions = list_versions(root, config.dataset)
    loaded = (load_manifest(root, config.dataset, version) for version in versions)
    named = {path for version in loaded for path in named_files(version.manifest)}
    folder = root.child(config.dataset)
    for found in results.values():
        for _, result in found:
            for path in (result.shard.path, *(column.path for column in result.shard.columns)):
                if path not in named:
                    folder.delete(path)


def _commit(
    config: IngestConfig,
    tokenizer: Any,
    weights: bytes,
    classes: Sequence[str],
    built: list[wire.Split],
    skipped: list[wire.Skipped],
    standing: LoadedManifest | None,
) -> LoadedManifest:
    root = open_store(config.root)
    message = f"{config.mode}: {sum(s.rows for b in built for s in b.shards)} pictures"
    if config.mode == "append" and standing is not None:
        return commit(
            root,
            extend(root, standing, built, message, skipped),
            rebase=lambda newest: extend(root, newest, built, message, skipped),
        )
    assets = [
        put_asset(root, config.dataset, "codebook", tokenizer.codebook.to_bytes()),
        put_asset(root, config.dataset, "tokenizer", weights),
    ]
    return commit(
        root,
        wire.Manifest(
            dataset=config.dataset,
            spec=tokenizer.spec,
            tokenizer_kind=tokenizer.kind,
            assets=assets,
            classes=list(classes),
            splits=built,
            skipped=skipped,
            message=message,
        ),
    )
