"""Pictures to token shards, as a Ray Data job: one row a shard, tokenizer actors, manifest last.

Nothing of a run that fails is ever visible: shards carry the name of their content and stand
unseen until the manifest that names them is committed, which happens once, at the end.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
import torch
from pydantic import TypeAdapter
from ray.data import ActorPoolStrategy

from services.errors import CapacityError, InvalidInputError
from services.pictures import Picture, check_unreadable, list_pictures, read_picture, source_bytes
from services.shards.layout import DEFAULT_COMPRESSION_LEVEL, check_compression_level
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
from services.shards.validate import check_name
from services.shards.writer import ShardResult, build_split, write_shard
from services.stream.cluster import Flag, capacity, connect
from services.stream.pictures import picture_splits
from services.tokens.tokenizer import load_tokenizer
from services.types import TokenRows
from services.wire.seit import v1 as wire

logger = logging.getLogger(__name__)

_SHARD = TypeAdapter(wire.Shard)


@dataclass(frozen=True)
class IngestConfig:
    """A folder of pictures becomes a version of a dataset: tokens in shards, manifest last."""

    images: str
    """Folder of class/picture files, or of train/ and val/ (or test/) with such folders."""
    root: str
    """Folder that holds datasets: a path or a URL (file, s3, gs)."""
    dataset: str
    """Name of the dataset."""
    tokenizer: str
    """The tokenizer's .safetensors file: a path or URL."""
    mode: Literal["create", "append", "replace"] = "create"
    """create: refuse a dataset that stands; append: add to it; replace: a new version of the new
    pictures alone (older versions stay readable)."""
    validation_fraction: float = 0.2
    """Share of the pictures, by hash of their path, that become the validation split, where the
    folder has none of its own (0 up to, not including, 1)."""
    rows_per_shard: int = 8192
    """Rows of a full shard (count)."""
    compression_level: int = DEFAULT_COMPRESSION_LEVEL
    """zstd's, 1 to 19: 9 makes shards of photographs a fifth smaller and packs 8 times slower."""
    batch: int = 64
    """Pictures that go through the tokenizer at once (count)."""
    actors: int = 0
    """Tokenizer actors (count); 0 for as many as the cluster has room for."""
    cpus: float = 1.0
    """CPU cores of an actor; it decodes pictures in as many threads."""
    gpus: float = 0.0
    """GPUs of an actor; fractions share one."""
    seed: int = 0
    """Seed of the split and of the order in which pictures are laid down."""

    def __post_init__(self) -> None:
        check_name(self.dataset)
        check_compression_level(self.compression_level)
        if not 0 <= self.validation_fraction < 1:
            raise InvalidInputError(
                f"validation_fraction is {self.validation_fraction}, expected 0 or more and below"
                " 1: the rest is what a model trains on"
            )
        for name in ("rows_per_shard", "batch"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if self.actors < 0 or self.cpus <= 0 or self.gpus < 0:
            raise InvalidInputError(
                f"actors {self.actors}, cpus {self.cpus}, gpus {self.gpus}: expected 0 or more"
                " actors, more than 0 CPUs and 0 or more GPUs each"
            )


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


class TokenizeActor:
    """Tokenizes and writes one shard a call; the tokenizer and the list of pictures stay."""

    def __init__(
        self,
        config: IngestConfig,
        pictures: ray.ObjectRef[dict[str, list[Picture]]],
        weights: bytes,
        cancelled: Flag,
    ) -> None:
        self._config = config
        self._cancelled = cancelled
        self._threads = max(1, round(config.cpus))
        torch.set_num_threads(self._threads)
        self._device = torch.device("cuda" if config.gpus and torch.cuda.is_available() else "cpu")
        self._tokenizer = load_tokenizer(weights).to(self._device).eval()
        # Inside a list, because Ray would otherwise resolve the reference for each actor's start.
        self._pictures: dict[str, list[Picture]] = ray.get(pictures)

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for name, start, stop in zip(batch["split"], batch["start"], batch["stop"], strict=True):
            yield self._shard(str(name), int(start), int(stop))

    def _shard(self, name: str, start: int, stop: int) -> dict[str, Any]:
        cancelled = self._cancelled.is_set()
        pictures = [] if cancelled else self._pictures[name][start:stop]
        spec = self._tokenizer.spec
        kept: list[Picture] = []
        ids: list[np.ndarray[Any, np.dtype[np.uint16]]] = []
        skipped: list[wire.Skipped] = []

        def read(picture: Picture) -> torch.Tensor | wire.Skipped:
            try:
                pixels = read_picture(picture.path, spec.image_height, spec.image_width)
            except InvalidInputError as error:
                return wire.Skipped(path=picture.key, reason=str(error))
            return torch.from_numpy(pixels)

        with ThreadPoolExecutor(self._threads) as pool, torch.inference_mode():
            for at in range(0, len(pictures), self._config.batch):
                part = pictures[at : at + self._config.batch]
                good: list[torch.Tensor] = []
                for picture, pixels in zip(part, pool.map(read, part), strict=True):
                    if isinstance(pixels, wire.Skipped):
                        skipped.append(pixels)
                    else:
                        kept.append(picture)
                        good.append(pixels)
                if good:
                    images = torch.stack(good).to(self._device).float() / 255
                    ids.append(self._tokenizer.encode(images).cpu().numpy().astype(np.uint16))
        answer: dict[str, Any] = {
            "split": [name],
            "start": [start],
            "skipped": [json.dumps([[s.path, s.reason] for s in skipped])],
            "shard": [""],
            "code_counts": [b""],
            "grid_hashes": [b""],
        }
        if kept:
            rows = TokenRows(
                ids=np.concatenate(ids),
                labels=np.array([p.label for p in kept], np.int64),
                keys=[p.key for p in kept],
                source_bytes=np.array([source_bytes(p.path) for p in kept], np.int64),
            )
            store, level = open_store(self._config.root), self._config.compression_level
            result = write_shard(store, self._config.dataset, name, rows, spec, level)
            answer["shard"] = [_SHARD.dump_json(result.shard).decode()]
            answer["code_counts"] = [result.code_counts.astype("<i8").tobytes()]
            answer["grid_hashes"] = [result.grid_hashes.astype("<u8").tobytes()]
        return answer


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
        root=absolute_url(config.root),
        tokenizer=absolute_url(config.tokenizer),
    )
    root = open_store(config.root)
    standing = _standing(config)
    weights = read_url(config.tokenizer)
    tokenizer = load_tokenizer(weights)
    listing = list_pictures(config.images)
    splits = picture_splits(listing.splits, config.validation_fraction, config.seed)
    _check_same(standing, tokenizer.spec, listing.classes)
    jobs = _jobs(splits, config.rows_per_shard)
    total = sum(len(pictures) for pictures in splits.values())

    connect()
    results: dict[str, list[tuple[int, ShardResult]]] = {name: [] for name in splits}
    skipped: list[wire.Skipped] = []
    cancelled = Flag()
    rows = _run(config, splits, weights, jobs, cancelled)

    def collect(row: dict[str, Any]) -> int:
        skipped.extend(wire.Skipped(path=p, reason=r) for p, r in json.loads(row["skipped"]))
        if not row["shard"]:
            return 0
        counts = np.frombuffer(row["code_counts"], "<i8").astype(np.int64)
        hashes = np.frombuffer(row["grid_hashes"], "<u8").astype(np.uint64)
        shard = _SHARD.validate_json(row["shard"])
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


def _jobs(splits: dict[str, list[Picture]], rows: int) -> list[dict[str, Any]]:
    return [
        {"split": name, "start": at, "stop": min(at + rows, len(pictures))}
        for name, pictures in splits.items()
        for at in range(0, len(pictures), rows)
    ]


def _run(
    config: IngestConfig,
    splits: dict[str, list[Picture]],
    weights: bytes,
    jobs: list[dict[str, Any]],
    cancelled: Flag,
) -> Iterator[dict[str, Any]]:
    room = int(capacity("CPU") // config.cpus) - 1
    actors = min(config.actors or max(1, room), len(jobs))
    for kind, each in (("CPU", config.cpus), ("GPU", config.gpus)):
        if actors * each > capacity(kind):
            raise CapacityError(
                f"{actors} actors of {each:g} {kind}s need {actors * each:g}; the cluster has"
                f" {capacity(kind):g}, so the job would wait for ever: use fewer or smaller actors"
                " (--actors, --cpus, --gpus) or a larger cluster"
            )
    # One block a job, made here: no task that would need a CPU beside the actors'.
    listed = ray.data.from_arrow([pa.Table.from_pylist([job]) for job in jobs])
    dataset = listed.map_batches(
        TokenizeActor,
        batch_size=1,
        batch_format="numpy",
        fn_constructor_args=(config, ray.put(splits), weights, cancelled),
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
            if result.shard.path not in named:
                folder.delete(result.shard.path)


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
