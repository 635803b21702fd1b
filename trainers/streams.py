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
from services.settings import load_settings
from services.shards.manifest import load_manifest
from services.shards.store import open_store
from services.stream.batch import StreamBatch
from services.stream.fetch import opened
from services.stream.loader import Stream, resume_step
from services.stream.request import RowsRequest, SourceRequest, StreamRequest
from services.stream.sources import pinned
from services.wire.seit import v1 as wire
from trainers.checkpoint import claimed
from trainers.config import TokenRun
from trainers.context import Place
from trainers.data_config import AugmentConfig, DataConfig
from trainers.loop import WorkerContext

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=TokenRun)


def settle(run: T) -> T:
    """The run with its dataset versions as numbers: all workers, and all restarts, read the same.

    A run that stands in `out` keeps the versions that it began with, unless it may take new ones.
    The run's streams are opened once, so that data and recipe that do not fit are refused here.

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
    run = replace(run, data=data.at(version, mixed))
    context = open_context(run, Place(rank=0, world=1, device=torch.device("cpu")))
    context.open_train(None)
    context.open_validation()
    return run


def open_context(run: TokenRun, place: Place) -> WorkerContext:
    """A worker's place together with the streams of its run.

    Raises: NotFoundError, InvalidInputError for a dataset, split or recipe that does not fit.
    """
    data, settings = run.data, load_settings()
    training_sources = training_sources_of(data)
    common: dict[str, Any] = {
        "order": run.order.spec(run.loop.seed),
        "cache_dir": str(settings.cache_dir),
        "cache_bytes": settings.cache_bytes,
        "skip_damaged": data.skip_damaged,
    }
    weights = (1.0, *data.mixture.values()) if data.mixture else ()
    training_rows = RowsRequest(sources=training_sources, weights=weights, **common)
    opened_rows = opened(training_rows)
    spec = opened_rows.spec
    training = StreamRequest(training_rows, recipe_of(run.augment, spec), run.augment.tokenadapt)
    evaluation = RECIPES["eval"](spec, (run.augment.crop, run.augment.crop))
    validation = StreamRequest(
        RowsRequest(
            sources=(replace(training_sources[0], split=data.validation_split),),
            sequential=True,
            **common,
        ),
        replace(evaluation, output=training.recipe.output),
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
    )


def training_sources_of(data: DataConfig) -> tuple[SourceRequest, ...]:
    """The dataset, and those that are mixed with it (NAME or NAME@VERSION), as they stand now."""
    root = open_store(data.root)
    sources = [pinned(root, data.dataset, data.train_split, data.version)]
    for dataset, version in data.mixed:
        number = int(version) if version else None
        sources.append(pinned(root, dataset, data.train_split, number))
    return tuple(sources)


def recipe_of(augment: AugmentConfig, spec: wire.TokenSpec) -> RecipeConfig:
    """The named recipe with the run's changes; without weights for it, TokenAdapt stays out."""
    config = RECIPES[augment.recipe](spec, (augment.crop, augment.crop))
    if not augment.tokenadapt:
        if config.adapt.share:
            logger.info("recipe %s: no TokenAdapt weights given, its path is off", augment.recipe)
        config = replace(config, adapt=replace(config.adapt, share=0.0))
    networks = replace(config.adapt, precision=augment.precision, compiled=augment.compile)
    config = replace(config, adapt=networks)
    for name, value in augment.overrides.items():
        config = _change(config, name, name.split("."), value)
    return config


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
    start = 0
    if saved:
        start, allowed = resume_step(request.rows, saved, allow)
        for difference in allowed:
            logger.warning("resumed as allowed: %s", difference)
    probe = Stream(request, rank=place.rank, world=place.world)
    return Stream(
        request,
        rank=place.rank,
        world=place.world,
        start=start,
        stop=epochs * probe.steps_per_epoch,
        pool=place.pool,
        sharing=place.sharing,
        trainer_cpus=place.trainer_cpus,
        augment_on=augment_on,
    )


def _open_validation(request: StreamRequest, place: Place) -> Iterable[StreamBatch]:
    """Finite, in threads of this process: cutting the centre costs next to nothing."""
    return Stream(request, rank=place.rank, world=place.world)
