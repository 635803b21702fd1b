"""From a run's folder of pictures to its streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from services.errors import InvalidInputError
from services.pictures import Picture, list_pictures
from services.stream.pictures import PictureSet, PictureStream, picture_splits
from services.wire.seit import v1 as wire
from trainers.context import Place
from trainers.picture_config import PictureRun
from trainers.task import WorkerContext

_TRAIN, _VALIDATION = "train", "validation"


P = TypeVar("P", bound=PictureRun)


def check_pictures(run: P) -> P:
    """The run itself, once its folder has been found to give pictures for both splits.

    Raises: as `open_pictures`.
    """
    _splits(run)
    return run


def _splits(run: PictureRun) -> tuple[Sequence[str], dict[str, list[Picture]]]:
    """(classes, pictures of each split)."""
    config = run.pictures
    listing = list_pictures(config.images)
    splits = picture_splits(listing.splits, config.validation_fraction, config.seed)
    for name in (_TRAIN, _VALIDATION):
        if name not in splits:
            raise InvalidInputError(
                f"{config.images} gives no {name} pictures with pictures.validation_fraction"
                f" {config.validation_fraction}: set a share apart, or lay out train/ and val/"
            )
    return listing.classes, splits


def open_pictures(run: PictureRun, place: Place, spec: wire.TokenSpec) -> WorkerContext:
    """A worker's place together with its streams of pictures, in the size that `spec` names.

    Raises: NotFoundError for a missing folder; InvalidInputError for one without pictures for
    both splits.
    """
    classes, splits = _splits(run)
    size = (spec.image_height, spec.image_width)
    training = PictureSet(_TRAIN, splits[_TRAIN], size)
    validation = PictureSet(_VALIDATION, splits[_VALIDATION], size)
    order = run.order.spec(run.loop.seed)
    rank, world, epochs = place.rank, place.world, run.loop.epochs
    return WorkerContext(
        rank=rank,
        world=world,
        device=place.device,
        spec=spec,
        classes=classes,
        open_train=lambda saved: PictureStream(
            training, order, rank=rank, world=world, epochs=epochs, saved=saved
        ),
        open_validation=lambda: PictureStream(
            validation, order, rank=rank, world=world, sequential=True
        ),
        report=place.report,
        should_stop=place.should_stop,
    )
