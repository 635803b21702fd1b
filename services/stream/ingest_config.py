"""What an ingest is asked for; every field is an option of `seit ingest`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from services.errors import InvalidInputError
from services.pictures import MAX_UNREADABLE_SHARE
from services.plan.draws import check_seed
from services.shards.layout import DEFAULT_COMPRESSION_LEVEL, check_compression_level
from services.shards.validate import check_name


@dataclass(frozen=True)
class IngestConfig:
    """Pictures become a version of a dataset: tokens in shards, manifest last."""

    images: str
    """Folder of class/picture files, or of train/ and val/ (or test/) with such folders, or
    Flowers-102, Stanford Cars or iNaturalist as they ship; with masks, of pictures at any depth, or
    of training/ and validation/ with such; or folder or URL of tars or Parquet files that hold
    pictures."""
    root: str
    """Folder that holds datasets: a path or a URL (file, s3, gs)."""
    dataset: str
    """Name of the dataset."""
    tokenizer: str
    """The tokenizer's .safetensors file: a path or URL."""
    source: Literal["auto", "classes", "plain", "webdataset", "parquet"] = "auto"
    """What `images` holds. classes: labelled pictures; plain: pictures without labels, nested in
    any way; webdataset: tars of NAME.jpg, NAME.txt, NAME.json; parquet: Parquet files with a column
    of pictures. auto: webdataset or parquet where such files stand in it, else classes."""
    captions: str = ""
    """Text to keep as the column `caption`: txt for NAME.txt beside a picture, another name for a
    field of NAME.json, or the name of a Parquet column; empty keeps none. Not with classes."""
    picture: str = ""
    """Parquet column that holds the pictures; empty for the first of jpg, png, webp, image, ..."""
    duplicates: Literal["keep", "drop"] = "keep"
    """drop: of pictures of a split whose files are equal byte by byte only the first becomes a row,
    also against rows that stand. It reads the source twice. They are counted either way."""
    max_unreadable: float = MAX_UNREADABLE_SHARE
    """Share of the pictures, and of the archives, that may be unreadable (they are listed in the
    manifest); past it the job stops and leaves nothing (0 up to, not including, 1)."""
    masks: str = ""
    """Folder of masks, laid out as the pictures are (ADE-20k: annotations); empty for labels from
    class folders."""
    mask_classes: str = ""
    """File with the masks' class names, one a line or a table of Idx and Name; by default
    objectInfo150.txt or classes.txt in the masks' folder or beside it."""
    mode: Literal["create", "append", "replace"] = "create"
    """create: refuse a dataset that stands; append: add to it; replace: a new version of the new
    pictures alone (older versions stay readable)."""
    validation_fraction: float = 0.2
    """Share of the pictures that become the validation split, where the source has none of its own:
    by hash of their path, or, without labels, of their content (0 up to, not including, 1)."""
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
        check_seed("seed", self.seed)
        if self.mask_classes and not self.masks:
            raise InvalidInputError(
                f"mask_classes is {self.mask_classes!r} without masks: it would name nothing; give"
                " the folder of masks as well"
            )
        if self.masks and (self.source != "auto" or self.captions):
            raise InvalidInputError(
                f"source is {self.source!r} and captions {self.captions!r} with masks: masks go"
                " with pictures in folders and have no captions; leave both out"
            )
        if self.picture and self.source not in ("auto", "parquet"):
            raise InvalidInputError(
                f"picture is {self.picture!r} with the source {self.source}: it names a column of"
                " Parquet files; leave it out, or use --source parquet"
            )
        if not 0 <= self.max_unreadable < 1:
            raise InvalidInputError(
                f"max_unreadable is {self.max_unreadable}, expected 0 or more and below 1: a share"
                " of the pictures"
            )
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
