"""What an ingest is asked for; every field is an option of `seit ingest`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from services.errors import InvalidInputError
from services.shards.layout import DEFAULT_COMPRESSION_LEVEL, check_compression_level
from services.shards.validate import check_name


@dataclass(frozen=True)
class IngestConfig:
    """A folder of pictures becomes a version of a dataset: tokens in shards, manifest last."""

    images: str
    """Folder of class/picture files, or of train/ and val/ (or test/) with such folders; with
    masks, of pictures at any depth, or of training/ and validation/ with such."""
    root: str
    """Folder that holds datasets: a path or a URL (file, s3, gs)."""
    dataset: str
    """Name of the dataset."""
    tokenizer: str
    """The tokenizer's .safetensors file: a path or URL."""
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
        if self.mask_classes and not self.masks:
            raise InvalidInputError(
                f"mask_classes is {self.mask_classes!r} without masks: it would name nothing; give"
                " the folder of masks as well"
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
