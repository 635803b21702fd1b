"""Pictures to token shards, as a Ray Data job: one row a shard, tokenizer actors, manifest last.

Nothing of a run that fails is ever visible: shards carry the name of their content and stand
unseen until the manifest that names them is committed, which happens once, at the end. A run that
fails takes none of them back: the same pictures become the same files, and the next run, or one
beside it, may have written them too. `seit gc` removes what no version names after a day.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import xxhash

from services.errors import InvalidInputError
from services.shards.coefficients import MAX_KEPT
from services.shards.grid_hashes import HashArray
from services.shards.manifest import (
    LoadedManifest,
    commit,
    extend,
    list_versions,
    load_manifest,
    put_asset,
)
from services.shards.store import absolute_url, open_store, read_as
from services.shards.writer import build_split
from services.sources.sample import PictureSource
from services.stream.cluster import Flag, connect
from services.stream.ingest_actor import TokenizeActor
from services.stream.ingest_config import IngestConfig
from services.stream.ingest_duplicates import survey
from services.stream.ingest_intake import Intake
from services.stream.ingest_jobs import Progress, run_jobs
from services.stream.ingest_source import open_source
from services.tokens.dct import DCT
from services.tokens.tokenizer import TokenizerModel, load_tokenizer
from services.types import MASK_COLUMN
from services.wire.seit import v1 as wire

__all__ = ["IngestConfig", "IngestReport", "ingest"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did. bytes: of shards. seconds: of the whole job.

    skipped: the first of what could not be read; `met.unreadable` counts all of it.
    """

    committed: LoadedManifest
    rows: int
    shards: int
    bytes: int
    source_bytes: int
    skipped: Sequence[wire.Skipped]
    met: wire.Intake
    seconds: float


def ingest(config: IngestConfig, progress: Progress | None = None) -> IngestReport:
    """Run the job and commit the new version.

    progress: called whenever a shard stands with ("ingest", how much is read, how much there is,
    "pictures" or "bytes"), and with "duplicates" before, where those are looked for first.

    Raises: NotFoundError, InvalidInputError for bad input (nothing is written); InvalidInputError
    when more cannot be read than `max_unreadable` (no version is committed).
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
    weights, tokenizer = read_as(config.tokenizer, lambda data: (data, load_tokenizer(data)))
    _check_kept(tokenizer)
    source = open_source(config, tokenizer.spec)
    codebook = tokenizer.codebook.to_bytes()
    _check_same(standing, tokenizer.spec, codebook, source.classes)
    _check_masks(config, standing, source)
    total = sum(source.sizes)

    connect()
    shared, cancelled = ray.put(source), Flag()
    drop: Mapping[int, HashArray] = {}
    if config.duplicates == "drop":
        drop = survey(config, source, shared, standing, cancelled, progress)
    jobs = [
        {"job": n, "drop": drop[n].astype("<u8").tobytes() if n in drop else b""}
        for n in range(len(source.sizes))
    ]
    intake = Intake(source, config)
    rows = run_jobs(config, TokenizeActor, jobs, (config, shared, weights, cancelled))
    try:
        for row in rows:
            intake.add(row)
            intake.check(ended=False)
            if progress is not None:
                progress("ingest", intake.done, total, source.unit)
        intake.check(ended=True)
        if not intake.results:
            raise InvalidInputError(
                f"{config.images}: {intake.met.pictures} pictures were met, and none of them"
                " became a row; no version was committed"
            )
    except BaseException:
        cancelled.set()  # no job starts any more; those under way end with the shard at hand
        for _ in rows:
            pass
        raise
    built = [
        build_split(root, config.dataset, name, results, tokenizer.spec.codes)
        for name, results in intake.ordered().items()
    ]
    committed = _commit(
        config, tokenizer, weights, codebook, source.classes, built, intake, standing
    )
    shards = [shard for s in built for shard in s.shards]
    logger.info("ingested %d pictures into %s", intake.met.rows, root.url)
    return IngestReport(
        committed=committed,
        rows=intake.met.rows,
        shards=len(shards),
        bytes=sum(s.bytes for s in shards),
        source_bytes=sum(s.source_bytes for s in shards),
        skipped=intake.skipped,
        met=intake.met,
        seconds=time.monotonic() - began,
    )


def _check_kept(tokenizer: TokenizerModel) -> None:
    """A block's coefficients must fit their stored form."""
    if isinstance(tokenizer, DCT) and tokenizer.config.keep > MAX_KEPT:
        raise InvalidInputError(
            f"the tokenizer keeps {tokenizer.config.keep} coefficients of a block, shards store at"
            f" most {MAX_KEPT}: fit it with a smaller --keep; nothing was read"
        )


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
    standing: LoadedManifest | None,
    spec: wire.TokenSpec,
    codebook: bytes,
    classes: Sequence[str],
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
    _check_codebook(old, codebook)
    if list(old.classes) != list(classes):
        raise InvalidInputError(
            f"dataset {old.dataset!r} has the classes {old.classes}, the pictures {list(classes)}:"
            " labels would change their meaning; use the same class folders or another name"
        )


def _check_codebook(old: wire.Manifest, codebook: bytes) -> None:
    """Tokenizers of one size may still differ in every code: trained anew, or on other pictures."""
    found = xxhash.xxh3_128_hexdigest(codebook)
    for asset in old.assets:
        if asset.kind == "codebook" and asset.xxh3 != found:
            raise InvalidInputError(
                f"dataset {old.dataset!r} version {old.version} has the codebook {asset.xxh3}, the"
                f" tokenizer {found}: the same id would mean two things; use the dataset's own"
                f" tokenizer (its file {asset.path.rpartition('/')[0]}/tokenizer-*.safetensors), or"
                " another name"
            )


def _check_masks(
    config: IngestConfig, standing: LoadedManifest | None, source: PictureSource
) -> None:
    """Rows of one version have masks or not; a run could not read half of it."""
    if config.mode != "append" or standing is None:
        return
    shards = [shard for split in standing.manifest.splits for shard in split.shards]
    masked = any(column.name == MASK_COLUMN for shard in shards for column in shard.columns)
    if masked != (source.mask_classes is not None):
        has, lacks = ("masks", "no masks") if masked else ("no masks", "masks")
        raise InvalidInputError(
            f"dataset {config.dataset!r} has {has}, the pictures to append have {lacks}: nothing"
            " could train on both; append the same kind, or use another name"
        )


def _commit(
    config: IngestConfig,
    tokenizer: Any,
    weights: bytes,
    codebook: bytes,
    classes: Sequence[str],
    built: list[wire.Split],
    intake: Intake,
    standing: LoadedManifest | None,
) -> LoadedManifest:
    root = open_store(config.root)
    message = f"{config.mode}: {sum(s.rows for b in built for s in b.shards)} pictures"
    if config.mode == "append" and standing is not None:

        def extended(newest: LoadedManifest) -> wire.Manifest:
            _check_same(newest, tokenizer.spec, codebook, classes)
            return extend(root, newest, built, message, intake.skipped, [intake.met])

        return commit(root, extended(standing), rebase=extended)
    assets = [
        put_asset(root, config.dataset, "codebook", codebook),
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
            skipped=intake.skipped,
            intakes=[intake.met],
            message=message,
        ),
    )
