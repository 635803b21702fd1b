"""Sweeps: the same classifier trained under several settings, over several seeds.

A point is one setting with one seed: where it pre-trains, MTM runs first, and points that ask for
the same pre-training share it. Points are runs of the ordinary programs, so each goes on from its
checkpoint; a point that is done is noted in OUT/points and never computed again.
"""

from __future__ import annotations

import logging
import math
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from services.errors import InvalidInputError, SeitError
from services.shards.manifest import LoadedManifest, load_manifest
from services.shards.reader import find_split
from services.shards.store import absolute_url, open_store
from trainers.command import run
from trainers.config import ClassifyRun, MtmRun
from trainers.data_config import Numbers, check_share, require
from trainers.figures import as_number, read_curve
from trainers.program import StoppedError
from trainers.recipes.classify import RECIPES as CLASSIFY_RECIPES
from trainers.recipes.mtm import RECIPES as MTM_RECIPES
from trainers.reports import read_json, strict_json
from trainers.signals import told_to_go
from trainers.step import classify_worker, mtm_worker
from trainers.streams import settle

logger = logging.getLogger(__name__)

FIGURES = ("top1", "top5", "loss")
_COLORADAPT = "color.coloradapt_probability"


@dataclass(frozen=True)
class SweepConfig:
    """What all sweeps share: the data, the recipes that are varied, and the seeds."""

    out: Path
    """Folder of the sweep: its runs, its points, and the table and picture of the result."""
    pictures: str = ""
    """Make the tokens here first: "digits" (scikit-learn's), "textures" (crops of scikit-image's
    photographs), "shapes" (drawn outlines), or a folder of class/picture files. Empty takes
    `root`, `dataset` and `tokenadapt`."""
    root: str = ""
    """Folder that holds datasets: a path or a URL."""
    dataset: str = ""
    """Name of the dataset in that folder."""
    version: int | None = None
    """Version of the dataset, from 1; None takes the newest."""
    tokenadapt: str = ""
    """TokenAdapt's weights (.safetensors) for that dataset."""
    seeds: int = 5
    """Seeds of each setting (count), from 0; the table gives their mean and standard error."""
    mtm: str = "mtm-tiny"
    """Recipe of the pre-training."""
    finetune: str = "finetune-tiny"
    """Recipe of the classifier that starts from it."""
    scratch: str = "scratch-tiny"
    """Recipe of the classifier that starts from nothing."""
    mtm_options: str = ""
    """More options of each pre-training, as its command line takes them, after an equals sign:
    --mtm-options="--loop.epochs 30"."""
    classify_options: str = ""
    """More options of each classifier, likewise."""
    overrides: Numbers = field(default_factory=dict)
    """Numbers of the classifiers' augmentation to change, besides what a setting changes."""
    coloradapt: float = 0.25
    """Share of the blocks that ColorAdapt changes in the settings that have it."""
    ray: bool = False
    """Run each point on a Ray cluster, rather than in this process on one device."""

    def __post_init__(self) -> None:
        require(self.seeds >= 1, "seeds", self.seeds, "at least 1")
        require(
            bool(self.pictures) != bool(self.root and self.dataset and self.tokenadapt),
            "pictures",
            self.pictures,
            "given, or else root, dataset and tokenadapt, and not both",
        )
        check_share("coloradapt", self.coloradapt)
        for name, recipe, known in (
            ("mtm", self.mtm, MTM_RECIPES),
            ("finetune", self.finetune, CLASSIFY_RECIPES),
            ("scratch", self.scratch, CLASSIFY_RECIPES),
        ):
            require(recipe in known, name, recipe, f"one of {', '.join(known)}")


@dataclass(frozen=True)
class Setting:
    """One row of a table. rows: of the training split that are trained on."""

    mtm: bool
    tokenadapt: bool
    coloradapt: bool
    rows: int

    @property
    def name(self) -> str:
        """For files: which parts are on, and the rows."""
        parts = (("mtm", self.mtm), ("ta", self.tokenadapt), ("ca", self.coloradapt))
        return "-".join([*(part for part, on in parts if on), f"{self.rows}rows"])


@dataclass(frozen=True)
class Data:
    """The tokens of a sweep, at a fixed version. bytes: of the training split's shards."""

    root: str
    loaded: LoadedManifest
    tokenadapt: str
    rows: int
    bytes: int

    def part(self, share: float) -> int:
        """Rows of a share of the training split, rounded up."""
        return math.ceil(share * self.rows)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.loaded.manifest.classes)


@dataclass(frozen=True)
class Point:
    """What came out of one setting with one seed. seconds: of its classifier's run."""

    top1: float
    top5: float
    loss: float
    seconds: float


def open_data(root: str, dataset: str, version: int | None, tokenadapt: str) -> Data:
    """The dataset that a sweep runs on. Raises: NotFoundError, InvalidInputError, FormatError."""
    root = absolute_url(root)
    loaded = load_manifest(open_store(root), dataset, version)
    split = find_split(loaded.manifest, "train")
    if not loaded.manifest.classes:
        raise InvalidInputError(
            f"dataset {dataset!r} has no classes: a sweep compares accuracies; ingest it with"
            " labels"
        )
    return Data(
        root=root,
        loaded=loaded,
        tokenadapt=absolute_url(tokenadapt),
        rows=sum(shard.rows for shard in split.shards),
        bytes=sum(shard.bytes for shard in split.shards),
    )


class Sweep:
    """The points of a sweep, computed one after another in the folder `config.out`."""

    def __init__(self, config: SweepConfig, data: Data, overrides: Mapping[str, float]) -> None:
        """overrides: numbers of the classifiers' augmentation that the kind of pictures asks for;
        the config's own win."""
        self._config, self.data = config, data
        self._overrides = {**overrides, **config.overrides}
        self._out = config.out.resolve()

    def run(self, settings: Sequence[Setting]) -> dict[Setting, list[Point]]:
        """The points of each setting, seed by seed. Raises: SeitError, StoppedError."""
        seeds = range(self._config.seeds)
        # Seed by seed, so that a sweep that was stopped has compared what it has.
        todo = [(setting, seed) for seed in seeds for setting in settings]
        found: dict[Setting, list[Point]] = {setting: [] for setting in settings}
        computed, spent = 0, 0.0
        for number, (setting, seed) in enumerate(todo, start=1):
            began = time.monotonic()
            point, fresh = self._point(setting, seed)
            found[setting].append(point)
            if fresh:
                computed += 1
                spent += time.monotonic() - began
            left = timedelta(seconds=round(spent / max(1, computed) * (len(todo) - number)))
            logger.info(
                "[%d/%d] %s, seed %d: top-1 %.1f %%%s",
                *(number, len(todo), setting.name, seed, 100 * point.top1),
                f" ({spent / computed:.0f} s a point, {left} left)" if fresh else " (done before)",
            )
        return found

    def commands(self, setting: Setting, seed: int) -> list[list[str]]:
        """The command lines of a point, as a person would type them: MTM's first, if any."""
        found = [] if not setting.mtm else [["mtm", *self._mtm_words(setting, seed)]]
        return [*found, ["classify", *self._classify_words(setting, seed)]]

    def _point(self, setting: Setting, seed: int) -> tuple[Point, bool]:
        """The point, and whether it was computed now."""
        notes, note = open_store(str(self._out / "points")), f"{setting.name}-seed{seed}.json"
        commands = [shlex.join(command) for command in self.commands(setting, seed)]
        if notes.exists(note):
            known = read_json(notes, note)
            if (stands := known.get("commands")) != commands:
                raise InvalidInputError(
                    f"{notes.url}/{note} was computed by other commands: {stands} there, {commands}"
                    " here. Nothing was changed there; give another --out, or the same options"
                )
            return Point(**{k: as_number(v) for k, v in known["figures"].items()}), False
        if setting.mtm:
            self._train("mtm", self._mtm_words(setting, seed))
        began = time.monotonic()
        self._train("classify", self._classify_words(setting, seed))
        folder = self.folder("classify", setting, seed)
        last = {name: read_curve(folder, f"validation_{name}")[1][-1] for name in FIGURES}
        point = Point(**last, seconds=time.monotonic() - began)
        about = {
            **asdict(setting),
            "seed": seed,
            "figures": asdict(point),
            "commands": commands,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        notes.write(note, strict_json(about, indent=2).encode())
        return point, True

    def _train(self, program: Literal["mtm", "classify"], words: Sequence[str]) -> None:
        if program == "mtm":
            code = run(MtmRun, MTM_RECIPES, mtm_worker, settle, words)
        else:
            code = run(ClassifyRun, CLASSIFY_RECIPES, classify_worker, settle, words)
        if told_to_go(code):
            raise StoppedError(code)
        if code:
            raise SeitError(
                f"python trainers/{program}.py {shlex.join(words)} ended with code {code}, as said"
                " above; points that are done stand"
            )

    def _mtm_words(self, setting: Setting, seed: int) -> list[str]:
        return [
            *("--recipe", self._config.mtm, *self._common_words(setting, seed)),
            *("--out", str(self.folder("mtm", setting, seed))),
            *shlex.split(self._config.mtm_options),
        ]

    def _classify_words(self, setting: Setting, seed: int) -> list[str]:
        recipe = self._config.finetune if setting.mtm else self._config.scratch
        overrides = {
            **CLASSIFY_RECIPES[recipe]().augment.overrides,
            **self._overrides,
            _COLORADAPT: self._config.coloradapt if setting.coloradapt else 0.0,
        }
        init = ["--model.init", str(self.folder("mtm", setting, seed))] if setting.mtm else []
        return [
            *("--recipe", recipe, *self._common_words(setting, seed), *init),
            *("--out", str(self.folder("classify", setting, seed))),
            *("--augment.overrides", *(str(word) for pair in overrides.items() for word in pair)),
            *shlex.split(self._config.classify_options),
        ]

    def _common_words(self, setting: Setting, seed: int) -> Iterator[str]:
        data, manifest = self.data, self.data.loaded.manifest
        yield from ("--data.root", data.root, "--data.dataset", manifest.dataset)
        yield from ("--data.version", str(manifest.version), "--loop.seed", str(seed))
        if setting.rows < data.rows:
            yield from ("--rows", str(setting.rows), "--data.subset-seed", str(seed))
        if setting.tokenadapt:
            yield from ("--augment.tokenadapt", data.tokenadapt)
        if not self._config.ray:
            yield "--cluster.no-ray"

    def folder(self, program: str, setting: Setting, seed: int) -> Path:
        """Where a run lies. ColorAdapt is no part of pre-training, so both kinds share one."""
        name = setting.name if program == "classify" else setting.name.replace("-ca", "")
        return self._out / "runs" / f"{program}-{name}-seed{seed}"


def described(data: Data) -> dict[str, Any]:
    """The data of a sweep, for its report: nothing that names a place."""
    manifest, spec = data.loaded.manifest, data.loaded.spec
    return {
        "dataset": manifest.dataset,
        "version": manifest.version,
        "rows": data.rows,
        "bytes": data.bytes,
        "classes": data.classes,
        "grid": [spec.grid_height, spec.grid_width],
        "codes": spec.codes,
    }
