"""From a run's configuration to its streams: which rows, in which order, through which recipe."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch

from services.augment.recipe import RECIPES, RecipeConfig
from services.errors import InvalidInputError
from services.plan.cursor import DATASET_VERSION
from services.settings import load_settings, quantity
from services.shards.labels import counts_of
from services.shards.manifest import load_manifest
from services.shards.reader import find_split
from services.shards.store import Store, open_store
from services.stream.batch import StreamBatch
from services.stream.fetch import opened
from services.stream.loader import Stream
from services.stream.opening import open_stream
from services.stream.request import RowsRequest, SourceRequest, StreamRequest
from services.stream.sources import pinned
from services.types import UNLABELLED
from services.wire.seit import v1 as wire
from trainers.checkpoint import checkpoint_steps, claimed
from trainers.config import TokenRun
from trainers.context import Place
from trainers.data_config import AugmentConfig, DataConfig
from trainers.loop import WorkerContext

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=TokenRun)

ALONE = Place(rank=0, world=1, device=torch.device("cpu"))
"""A place to look at a run's data from, before it is known where the run computes."""


def settle(run: T) -> T:
    """The run with its dataset versions as numbers: all workers, and all restarts, read the same.

    A run that stands in `out` keeps the versions that it began with, unless it may take new ones.
    A limit of storage becomes a number of rows. The run's streams are opened once, so that data and
    recipe that do not fit are refused here.

    Raises: NotFoundError, InvalidInputError, FormatError.
    """
    data = run.data
    known: dict[str, Any] = {}
    if not run.resume.allow_dataset_version:
        known = claimed(run.out).get("data") or {}
        known = known if known.get("dataset") == data.dataset else {}
    root = open_store(data.root)

    def newest(dataset: str) -> int:
        return load_manifest(root, dataset).manifest.version

    version = data.version or known.get("version") or newest(data.dataset)
    began = known.get("mixture_versions") or {}
    mixed = [given or began.get(dataset) or str(newest(dataset)) for dataset, given in data.mixed]
    run = replace(run, data=_counted(root, data.at(version, mixed)))
    context = open_context(run, ALONE)
    _tell_of_tokenadapt(run.augment, context.spec)
    stop = run.loop.epochs * context.open_train(None).steps_per_epoch
    context.open_validation()
    stands = max(checkpoint_steps(run.out), default=0)
    if stands > stop:
        raise InvalidInputError(
            f"the run in {run.out} cannot start at step {stands}: valid are 0 to its end at step"
            f" {stop}, after which nothing is left to read; ask for more epochs or, where a new"
            " version of the data has fewer rows, for the version before"
        )
    return run


def refuse_unlabelled(run: TokenRun) -> None:
    """Raise InvalidInputError if rows to train or validate on lack a label, by the manifests."""
    data, root = run.data, open_store(run.data.root)
    validated = (data.dataset, data.version, data.validation_split)
    trained = [(data.dataset, data.version, data.train_split)]
    trained += [(name, int(at) if at else None, data.train_split) for name, at in data.mixed]
    for dataset, version, name in (*trained, validated):
        split = find_split(load_manifest(root, dataset, version).manifest, name)
        counts = [counts_of(shard) for shard in split.shards]
        missing = sum(int(rows[labels == UNLABELLED].sum()) for labels, rows in counts)
        if missing:
            rows = sum(shard.rows for shard in split.shards)
            raise InvalidInputError(
                f"{missing} of the {rows} rows of {dataset}/{name} have no label, and cannot teach"
                " a classifier; ingest them with labels, leave them out, or pre-train on them with"
                " trainers/mtm.py"
            )


def _counted(root: Store, data: DataConfig) -> DataConfig:
    """The same data, with the rows that `storage` has room for, by their mean size in the split."""
    if not data.storage:
        return data
    split = find_split(load_manifest(root, data.dataset, data.version).manifest, data.train_split)
    rows, taken = (
        sum(getattr(shard, name) for shard in split.shards) for name in ("rows", "bytes")
    )
    asked = quantity(data.storage)
    fitting = int(asked * rows / max(1, taken))
    if not 1 <= fitting <= rows:
        raise InvalidInputError(
            f"data.storage is {data.storage!r}, {asked:.0f} bytes; split {split.name!r} of"
            f" {data.dataset!r} takes {taken} for {rows} rows, {taken / max(1, rows):.0f} each:"
            " valid are sizes from one row to all; leave it out to train on all of them"
        )
    logger.info("storage of %s: %d of %d rows", data.storage, fitting, rows)
    return replace(data, storage="", rows=fitting)


def open_context(run: TokenRun, place: Place) -> WorkerContext:
    """A worker's place together with the streams of its run.

    Raises: NotFoundError, InvalidInputError for a dataset, split or recipe that does not fit.
    """
    data, settings = _counted(open_store(run.data.root), run.data), load_settings()
    training_sources = training_sources_of(data)
    common: dict[str, Any] = {
        "order": run.order.spec(run.loop.seed),
        "cache_dir": str(settings.cache_dir),
        "cache_bytes": settings.cache_bytes,
        "skip_damaged": data.skip_damaged,
        "masks": run.reads_masks,
        "coefficients": run.augment.coefficients,
    }
    weights = (1.0, *data.mixture.values()) if data.mixture else ()
    training_rows = RowsRequest(sources=training_sources, weights=weights, **common)
    opened_rows = opened(training_rows)
    spec = opened_rows.spec
    recipe = recipe_of(run.augment, spec)
    recipe = replace(recipe, output=run.output or recipe.output)
    training = StreamRequest(training_rows, recipe, run.augment.tokenadapt)
    evaluation = RECIPES["eval"](spec, (run.augment.crop, run.augment.crop))
    validation = StreamRequest(
        RowsRequest(
            sources=(replace(training_sources[0], split=data.validation_split, subset=None),),
            sequential=True,
            **common,
        ),
        replace(evaluation, output=recipe.output),
    )
    allow = {DATASET_VERSION} if run.resume.allow_dataset_version else set()
    return WorkerContext(
        rank=place.rank,
        world=place.world,
        device=place.device,
        spec=spec,
        classes=opened_rows.classes,
        open_train=partial(
            _open_training,
            training,
            run.loop.epochs,
            place,
            allow,
            str(place.device) if run.cluster.augment_in == "trainer" else None,
        ),
        open_validation=partial(_open_validation, validation, place),
        report=place.report,
        should_stop=place.should_stop,
        node_leaves=place.node_leaves,
    )


def training_sources_of(data: DataConfig) -> tuple[SourceRequest, ...]:
    """The dataset, and those that are mixed with it (NAME or NAME@VERSION), as they stand now."""
    root = open_store(data.root)
    main = pinned(root, data.dataset, data.train_split, data.version)
    sources = [replace(main, subset=data.subset)]
    for dataset, version in data.mixed:
        number = int(version) if version else None
        sources.append(pinned(root, dataset, data.train_split, number))
    return tuple(sources)


def recipe_of(augment: AugmentConfig, spec: wire.TokenSpec) -> RecipeConfig:
    """The named recipe with the run's changes; without weights for it, TokenAdapt stays out."""
    config = RECIPES[augment.recipe](spec, (augment.crop, augment.crop))
    if augment.coefficients:
        config = replace(config, eda=replace(config.eda, synonym_probability=0.0))  # of codes
    elif not augment.tokenadapt:
        config = replace(config, adapt=replace(config.adapt, share=0.0))
    networks = replace(config.adapt, precision=augment.precision, compiled=augment.compile)
    config = replace(config, adapt=networks)
    for name, value in augment.overrides.items():
        config = _change(config, name, name.split("."), value)
    return config


def _tell_of_tokenadapt(augment: AugmentConfig, spec: wire.TokenSpec) -> None:
    """Say once, before a run starts, that its recipe goes without what it would otherwise use."""
    if augment.tokenadapt or augment.coefficients:
        return
    if RECIPES[augment.recipe](spec, (augment.crop, augment.crop)).adapt.share:
        logger.info("recipe %s: no TokenAdapt weights given, its path is off", augment.recipe)


def _change(part: Any, name: str, path: list[str], value: float) -> Any:
    """`part` with the number at `path` (dots in `name`) set to `value`; pairs count from 0."""
    if isinstance(part, tuple):
        known = {str(index) for index in range(len(part))}
    else:
        known = {field.name for field in fields(part)} if is_dataclass(part) else set()
    if not path or path[0] not in known:
        raise InvalidInputError(
            f"augment.overrides names {name!r}; to be changed are the numbers of the recipe,"
            f" here {', '.join(sorted(known)) or 'nothing below a number'}"
        )
    inner = part[int(path[0])] if isinstance(part, tuple) else getattr(part, path[0])
    if isinstance(inner, tuple) or is_dataclass(inner):
        changed = _change(inner, name, path[1:], value)
    elif len(path) > 1 or isinstance(inner, str):
        raise InvalidInputError(
            f"augment.overrides names {name!r}, which is not a number; only numbers can be changed"
        )
    elif isinstance(inner, int) and not float(value).is_integer():
        raise InvalidInputError(
            f"augment.overrides gives {name!r} the value {value:g}; it is a count, now {inner}:"
            " give a whole number"
        )
    else:
        changed = type(inner)(value)
    if isinstance(part, tuple):
        at = int(path[0])
        return (*part[:at], changed, *part[at + 1 :])
    return replace(part, **{path[0]: changed})


def _open_training(
    request: StreamRequest,
    epochs: int,
    place: Place,
    allow: Collection[str],
    augment_on: str | None,
    saved: bytes | None,
) -> Stream:
    return open_stream(
        request,
        epochs=epochs,
        saved=saved,
        allow=allow,
        rank=place.rank,
        world=place.world,
        pool=place.pool,
        trainer_cpus=place.trainer_cpus,
        sharing=place.sharing,
        augment_on=augment_on,
    )


def _open_validation(request: StreamRequest, place: Place) -> Iterable[StreamBatch]:
    """Finite, in threads of this process: cutting the centre costs next to nothing."""
    return open_stream(request, rank=place.rank, world=place.world)
