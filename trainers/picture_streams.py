"""From a run's folder of pictures to its streams."""

from __future__ import annotations

from typing import TypeVar

from services.errors import InvalidInputError
from services.pictures import Picture, list_pictures
from services.stream.pictures import PictureSet, PictureStream, picture_splits
from services.wire.seit import v1 as wire
from trainers.context import Place
from trainers.picture_config import PictureRun, PicturesConfig
from trainers.picture_subsets import chosen, read_keys
from trainers.task import WorkerContext

TRAIN, VALIDATION = "train", "validation"

P = TypeVar("P", bound=PictureRun)


def check_pictures(run: P) -> P:
    """The run itself, once its folder has been found to give pictures for both splits.

    Raises: as `open_pictures`.
    """
    _kept(run.pictures, split_pictures(run.pictures)[1][TRAIN])
    return run


def split_pictures(config: PicturesConfig) -> tuple[tuple[str, ...], dict[str, list[Picture]]]:
    """(classes, pictures of each split, all that train among them).

    Raises: NotFoundError for a missing folder; InvalidInputError for one without pictures for
    both splits.
    """
    listing = list_pictures(config.images)
    splits = picture_splits(listing.splits, config.validation_fraction, config.seed)
    for name in (TRAIN, VALIDATION):
        if name not in splits:
            raise InvalidInputError(
                f"{config.images} gives no {name} pictures with pictures.validation_fraction"
                f" {config.validation_fraction}: set a share apart, or lay out train/ and val/"
            )
    return listing.classes, splits


def _kept(config: PicturesConfig, pictures: list[Picture]) -> list[Picture]:
    """The training pictures that the run learns from, in their order."""
    return chosen(pictures, read_keys(config.keys), config.keys) if config.keys else pictures


def open_pictures(run: PictureRun, place: Place, spec: wire.TokenSpec) -> WorkerContext:
    """A worker's place together with its streams of pictures, in the size that `spec` names.

    Raises: NotFoundError for a missing folder or list of keys; InvalidInputError for a folder
    without pictures for both splits, or keys of other pictures.
    """
    classes, splits = split_pictures(run.pictures)
    size = (spec.image_height, spec.image_width)
    training = PictureSet(TRAIN, _kept(run.pictures, splits[TRAIN]), size)
    validation = PictureSet(VALIDATION, splits[VALIDATION], size)
    whole = len(splits[TRAIN])
    order = run.order.spec(run.loop.seed)
    rank, world, epochs = place.rank, place.world, run.loop.epochs
    return WorkerContext(
        rank=rank,
        world=world,
        device=place.device,
        spec=spec,
        classes=classes,
        open_train=lambda saved: PictureStream(
            training, order, rank=rank, world=world, epochs=epochs, saved=saved, whole=whole
        ),
        open_validation=lambda: PictureStream(
            validation, order, rank=rank, world=world, sequential=True
        ),
        report=place.report,
        should_stop=place.should_stop,
        node_leaves=place.node_leaves,
    )
