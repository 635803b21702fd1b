"""Which tokens a run reads, in which order, through which augmentation; see `config.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import tyro

from services.errors import InvalidInputError
from services.plan.draws import check_seed
from services.plan.epoch import OrderSpec
from services.plan.subset import SubsetSpec
from services.settings import quantity


def require(holds: bool, name: str, value: object, valid: str) -> None:
    """Raise InvalidInputError, which names the option, unless it holds."""
    if not holds:
        raise InvalidInputError(f"{name} is {value!r}, it must be {valid}: no run could be made")


def check_share(name: str, value: float | None) -> None:
    """Require a share, or None."""
    require(value is None or 0 <= value <= 1, name, value, "a share between 0 and 1")


def check_rate(name: str, value: float) -> None:
    """Require a share below 1, of what must not be dropped, kept or smoothed altogether."""
    require(0 <= value < 1, name, value, "a share of at least 0 and below 1")


def check_finite(options: Mapping[str, Any], prefix: str = "") -> None:
    """Require finite numbers in a nest of options: a rate without end trains nothing, and JSON
    could not hold it."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            check_finite(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            require(math.isfinite(value), f"{prefix}{name}", value, "a finite number")


def _pairs(words: list[str]) -> dict[str, float]:
    if len(words) % 2:
        raise ValueError(f"{words[-1]!r} has no value: give NAME VALUE pairs")
    return {name: float(value) for name, value in zip(words[::2], words[1::2], strict=True)}


# Left alone, tyro would fix the names to those of the recipe: none could be added or taken away.
Numbers = Annotated[
    dict[str, float],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME VALUE ...]",
        instance_from_str=_pairs,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda pairs: [str(word) for pair in pairs.items() for word in pair],
    ),
]


_VERSION_MARK = "@"


@dataclass(frozen=True)
class DataConfig:
    """Which tokens to train on."""

    root: str = "data"
    """Folder that holds datasets: a path or a URL (file, s3, gs)."""
    dataset: str = "imagenet"
    """Name of the dataset in that folder."""
    mixture: Numbers = field(default_factory=dict)
    """More datasets of that folder to train on, each with its weight; `dataset` has weight 1."""
    version: int | None = None
    """Version of the dataset, from 1; None takes the newest when the run begins."""
    train_split: str = "train"
    """Split to train on."""
    validation_split: str = "validation"
    """Split of `dataset` to validate on, each of its rows once."""
    rows: Annotated[int, tyro.conf.arg(aliases=("--rows",))] = 0
    """Rows of `dataset` to train on (count), as many of each class; 0 for all. The number of steps
    stays that of all rows."""
    storage: Annotated[str, tyro.conf.arg(aliases=("--storage",))] = ""
    """The same by the storage that they take: 0.5GB for as many rows as 500,000,000 bytes hold."""
    subset_seed: int = 0
    """Which rows those are; a smaller subset of the same seed is part of a larger one."""
    skip_damaged: bool = False
    """Go on without the rows of a shard that is damaged on storage, instead of ending the run."""

    def __post_init__(self) -> None:
        require(bool(self.root), "data.root", self.root, "a path or URL")
        require(bool(self.dataset), "data.dataset", self.dataset, "the name of a dataset")
        require(
            self.version is None or self.version >= 1, "data.version", self.version, "None or >= 1"
        )
        require(self.rows >= 0, "data.rows", self.rows, "at least 1, or 0 for all")
        require(
            not self.storage or 1 <= quantity(self.storage) < math.inf,
            "data.storage",
            self.storage,
            "a number of bytes such as 0.5GB or 300MB (powers of 1000)",
        )
        require(not (self.rows and self.storage), "data.rows", self.rows, "0 with data.storage")
        check_seed("data.subset_seed", self.subset_seed)
        names = {self.dataset}
        for (dataset, version), (name, weight) in zip(
            self.mixed, self.mixture.items(), strict=True
        ):
            valid = math.isfinite(weight) and weight > 0 and dataset not in names
            require(valid, f"data.mixture {name}", weight, "above 0, and of another dataset")
            marked = version.isdecimal() or name == dataset
            require(marked, "data.mixture", name, "NAME, or NAME@VERSION with a number from 1")
            names.add(dataset)

    @property
    def subset(self) -> SubsetSpec | None:
        """The part of `dataset` to train on, once `storage` was counted in rows; None for all."""
        assert not self.storage
        return SubsetSpec(self.rows, self.subset_seed) if self.rows else None

    @property
    def mixed(self) -> list[tuple[str, str]]:
        """(dataset, version or "" for the newest) of each entry of the mixture, in its order."""
        parts = (name.partition(_VERSION_MARK) for name in self.mixture)
        return [(dataset, version) for dataset, _, version in parts]

    def at(self, version: int, mixed: Sequence[str]) -> DataConfig:
        """The same data at fixed versions; mixed: those of the mixture, in its order."""
        pairs = zip(self.mixed, mixed, self.mixture.values(), strict=True)
        mixture = {f"{name}{_VERSION_MARK}{at}": weight for (name, _), at, weight in pairs}
        return replace(self, version=version, mixture=mixture)


@dataclass(frozen=True)
class OrderConfig:
    """Which rows make up a step. The number of workers changes nothing here."""

    global_batch: int = 1024
    """Rows of one optimizer step, over all workers."""
    block: int = 128
    """Rows that stay together: pairings of the augmentation are made inside a block."""
    lanes: int = 8
    """Fixed parts of the split (count); each is read by the same worker in every epoch."""
    window_shards: int = 16
    """Shards of a lane that one shuffle mixes."""

    def __post_init__(self) -> None:
        self.spec(seed=0)  # one place knows what makes an order valid

    def spec(self, seed: int) -> OrderSpec:
        """The order as the plan reads it."""
        return OrderSpec(seed, self.global_batch, self.block, self.lanes, self.window_shards)


@dataclass(frozen=True)
class ResumeConfig:
    """What may differ from the run that stands in `out`."""

    allow_dataset_version: bool = False
    """Go on with another version of the dataset; the epoch under way may repeat or miss rows."""


@dataclass(frozen=True)
class AugmentConfig:
    """How rows are augmented: a named recipe of `services.augment.recipe`, and changes to it."""

    recipe: Literal["mtm", "finetune", "scratch", "segment", "eval"] = "mtm"
    """Recipe that the other options change; "scratch" gives the model embeddings, others ids."""
    crop: int = 28
    """Side of the grid that the model reads, tokens."""
    coefficients: bool = False
    """Read the DCT coefficients of the dataset as channels, not the codes that stand for them; for
    classifiers from scratch. Needs no TokenAdapt weights: the transform itself leads to pixels."""
    tokenadapt: str = ""
    """TokenAdapt's weights (.safetensors): a path or URL; empty does without TokenAdapt."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of TokenAdapt; bfloat16 pays on GPUs, and gives another id here and there."""
    compile: bool = False
    """Compile TokenAdapt with torch.compile: slow at the start, faster augmentation on a GPU."""
    overrides: Numbers = field(default_factory=dict)
    """Numbers of the augmentation to change (adapt.flip_probability 0); replaces all of these."""

    def __post_init__(self) -> None:
        require(self.crop >= 1, "augment.crop", self.crop, "at least 1 token")
        require(
            not (self.coefficients and self.tokenadapt),
            "augment.tokenadapt",
            self.tokenadapt,
            "empty with augment.coefficients, whose transform takes its place",
        )
