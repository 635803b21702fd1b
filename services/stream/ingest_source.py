"""Which source of pictures an ingest reads, opened before anything starts."""

from __future__ import annotations

from pathlib import Path

from services.errors import InvalidInputError
from services.masks import check_sample, list_masked
from services.pictures import list_pictures
from services.shards.store import LocalStore, open_store
from services.sources.archives import ArchiveSource
from services.sources.listed import ListedSource
from services.sources.parquet import ParquetSource
from services.sources.plain import PlainSource
from services.sources.sample import PictureSource
from services.sources.webdataset import WebDatasetSource
from services.stream.ingest_config import IngestConfig
from services.stream.pictures import picture_splits
from services.wire.seit import v1 as wire

_ARCHIVES: tuple[type[ArchiveSource], ...] = (WebDatasetSource, ParquetSource)
"""In the order in which they are looked for: img2dataset puts a table of its URLs, a Parquet file
without pictures, beside each tar."""


def open_source(config: IngestConfig, spec: wire.TokenSpec) -> PictureSource:
    """The pictures that `config` asks for, for a tokenizer of that spec.

    Raises: NotFoundError for what is not there; InvalidInputError for what does not fit.
    """
    if config.masks:
        return _masked(config, spec)
    kind = config.source if config.source != "auto" else _found(config)
    if kind == "webdataset":
        return WebDatasetSource(open_store(config.images), config.captions)
    if kind == "parquet":
        return ParquetSource(open_store(config.images), config.captions, config.picture)
    folder = open_store(config.images)
    if not isinstance(folder, LocalStore):
        raise InvalidInputError(
            f"{config.images} is an object store, and holds no tars or Parquet files that are"
            " asked for: single pictures are read from a folder; pack them into tars, or give a"
            " folder"
        )
    if kind == "plain":
        return PlainSource(Path(folder.url), config.rows_per_shard, config.captions)
    if config.captions or config.picture:
        raise InvalidInputError(
            f"captions {config.captions!r} and picture {config.picture!r} with class folders, which"
            " have neither: use --source plain for pictures without labels, or leave them out"
        )
    found = list_pictures(folder.url)
    splits = picture_splits(found.splits, config.validation_fraction, config.seed)
    return ListedSource("classes", found.classes, splits, config.rows_per_shard)


def _found(config: IngestConfig) -> str:
    """What stands directly in the folder."""
    store = open_store(config.images)
    if isinstance(store, LocalStore):
        folder = Path(store.url)
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    else:
        names = [entry.path for entry in store.scan()]
    for kind in _ARCHIVES:
        if any(map(kind.holds, names)):
            return kind.kind
    return "classes"


def _masked(config: IngestConfig, spec: wire.TokenSpec) -> ListedSource:
    if spec.image_height % spec.grid_height or spec.image_width % spec.grid_width:
        raise InvalidInputError(
            f"the tokenizer makes {spec.grid_height}x{spec.grid_width} tokens of"
            f" {spec.image_height}x{spec.image_width} pixels: a token is no whole number of pixels,"
            " so masks could not be cut with it; use a tokenizer whose patch divides the picture"
        )
    masked = list_masked(config.images, config.masks, config.mask_classes)
    check_sample(masked)
    splits = picture_splits(masked.splits, config.validation_fraction, config.seed)
    return ListedSource(
        "masks", masked.classes.names, splits, config.rows_per_shard, masked.masks, masked.classes
    )
