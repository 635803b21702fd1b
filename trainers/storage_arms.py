"""What a storage study compares: ways to keep pictures, and the jobs that train on each.

A way to keep pictures is an arm: their files as they are, parts of them, files made smaller, or
tokens. Each arm trains the same transformer for the same number of steps.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from services.pictures import Picture, source_bytes
from services.shards.store import absolute_url, open_store
from trainers.checkpoint import MODEL
from trainers.consistency import SCORES, read_scores
from trainers.data_config import Numbers, check_share, require
from trainers.job_graph import ClusterOptions, Job
from trainers.picture_subsets import at_random, stratified, write_keys
from trainers.picture_variant import REPORT as VARIANT
from trainers.recipes.classify import RECIPES as CLASSIFY_RECIPES
from trainers.recipes.mtm import RECIPES as MTM_RECIPES
from trainers.recipes.pixels import RECIPES as PIXEL_RECIPES
from trainers.recipes.tokenadapt import RECIPES as TOKENADAPT_RECIPES
from trainers.recipes.tokenizer import RECIPES as TOKENIZER_RECIPES
from trainers.reports import read_json

Method = Literal["full", "random", "cscore", "jpeg", "resolution", "seit", "seitpp"]
METHODS: Mapping[Method, str] = {
    "full": "full pixels",
    "random": "random subset",
    "cscore": "C-score subset",
    "jpeg": "JPEG quality",
    "resolution": "resolution",
    "seit": "SeiT",
    "seitpp": "SeiT++",
}
"""By name, as tables call them, in the order of the paper's Table 1."""
DATASET = "study"
"""Name of the tokens' dataset."""


@dataclass(frozen=True)
class StudyConfig:
    """Bytes and accuracy of pixels, subsets, JPEG, resolution, SeiT and SeiT++, as Ray jobs.

    Each point trains the same transformer for the same number of steps; SeiT++ pre-trains before.
    """

    out: Path
    """Folder of the study: runs, notes of jobs, table, chart. Shared, where jobs run elsewhere."""
    images: str = "digits"
    """Folder of class/picture files, or "digits" (scikit-learn's), "textures" (crops of
    scikit-image's photographs) or "shapes" (drawn outlines), which are made here first."""
    tokenizer: str = ""
    """Tokenizer (.safetensors) to make tokens with; empty trains one on the folder."""
    tokenadapt: str = ""
    """TokenAdapt's weights (.safetensors) for that tokenizer; empty trains them."""
    seeds: int = 3
    """Seeds of each point (count), from 0; the table gives their mean and standard error."""
    random: tuple[float, ...] = (0.5, 0.25)
    """Random subsets, as shares of the training pictures of each class."""
    cscore: tuple[float, ...] = (0.5, 0.25)
    """Subsets of the most consistent pictures, likewise."""
    jpeg: tuple[int, ...] = (50, 5)
    """JPEG qualities, 1 to 95."""
    resolution: tuple[float, ...] = (0.5, 0.2)
    """Resolutions, as shares of the sides."""
    tokens: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Shares of the rows of tokens, for SeiT and SeiT++."""
    cscore_models: int = 4
    """Models that consistency is estimated by (count, even): each trains on half of the pictures,
    every second one on what the one before left out."""
    keep: Literal["consistent", "inconsistent"] = "consistent"
    """Which end of that order a C-score subset keeps."""
    pixels: str = "pixels-tiny"
    """Recipe of the pixel classifiers."""
    scratch: str = "scratch-tiny"
    """Recipe of the token classifier that starts from nothing (SeiT)."""
    finetune: str = "finetune-tiny"
    """Recipe of the token classifier that starts from MTM (SeiT++)."""
    mtm: str = "mtm-tiny"
    """Recipe of its pre-training."""
    tokenizer_recipe: str = "tokenizer-tiny"
    """Recipe of the tokenizer, where one is trained."""
    tokenadapt_recipe: str = "tokenadapt-tiny"
    """Recipe of TokenAdapt, where it is trained."""
    options: str = ""
    """Options of all classifiers, of pixels and of tokens: the model and the budget. As a command
    line takes them, after an equals sign: --options="--loop.epochs 30"."""
    pixel_options: str = ""
    """More options of the pixel classifiers."""
    token_options: str = ""
    """More options of the token classifiers."""
    mtm_options: str = ""
    """Options of the pre-training."""
    tokenizer_options: str = ""
    """Options of the tokenizer."""
    tokenadapt_options: str = ""
    """Options of TokenAdapt."""
    cscore_options: str = ""
    """More options of the models that consistency is estimated by."""
    shard_rows: int = 8192
    """Rows of a full shard of tokens (count)."""
    overrides: Numbers = field(default_factory=dict)
    """Numbers of the token classifiers' augmentation to change."""
    coloradapt: float = 0.25
    """Share of the blocks that ColorAdapt changes in SeiT++."""
    on_ray: bool = False
    """Train each point with Ray Train on the cluster's workers, rather than in its job's process on
    one device."""
    cluster: ClusterOptions = field(default_factory=ClusterOptions)

    def __post_init__(self) -> None:
        require(self.seeds >= 1, "seeds", self.seeds, "at least 1")
        for name in ("random", "cscore", "resolution"):
            _check(name, getattr(self, name), "different shares above 0 and below 1", 0, 1)
        _check("jpeg", self.jpeg, "different qualities from 1 to 95", 0, 96)
        _check("tokens", self.tokens, "different shares above 0 to 1", 0, 1.0000001)
        require(bool(self.tokens), "tokens", self.tokens, "at least one share")
        models = self.cscore_models
        valid = "an even number from 2 on: halves come in pairs"
        require(models >= 2 and models % 2 == 0, "cscore_models", models, valid)
        check_share("coloradapt", self.coloradapt)
        require(
            not self.tokenadapt or bool(self.tokenizer),
            "tokenadapt",
            self.tokenadapt,
            "given with the tokenizer that it belongs to",
        )
        for name, known in (
            ("pixels", PIXEL_RECIPES),
            ("scratch", CLASSIFY_RECIPES),
            ("finetune", CLASSIFY_RECIPES),
            ("mtm", MTM_RECIPES),
            ("tokenizer_recipe", TOKENIZER_RECIPES),
            ("tokenadapt_recipe", TOKENADAPT_RECIPES),
        ):
            recipe = getattr(self, name)
            require(recipe in known, name, recipe, f"one of {', '.join(known)}")


def _check(name: str, values: Sequence[float], valid: str, above: float, below: float) -> None:
    inside = all(above < value < below for value in values)
    require(inside and len(set(values)) == len(values), name, values, valid)


@dataclass(frozen=True)
class Arm:
    """One way to keep the pictures. value: share, or quality of JPEG; 1 for all of them."""

    method: Method
    value: float

    @property
    def name(self) -> str:
        """For files and jobs."""
        return self.method if self.method == "full" else f"{self.method}-{self.value:g}"

    @property
    def title(self) -> str:
        """For tables."""
        label = METHODS[self.method]
        if self.value == 1:
            return label
        return f"{label} {self.value:g}" if self.method == "jpeg" else f"{label}, {self.value:.0%}"

    @property
    def of_tokens(self) -> bool:
        """Whether tokens are kept, and no pixels."""
        return self.method in ("seit", "seitpp")


def arms(config: StudyConfig) -> list[Arm]:
    """Rows of the table."""
    asked: dict[Method, Sequence[float]] = {
        "full": (1,),
        "random": config.random,
        "cscore": config.cscore,
        "jpeg": config.jpeg,
        "resolution": config.resolution,
        "seit": config.tokens,
        "seitpp": config.tokens,
    }
    return [Arm(name, value) for name in asked for value in sorted(asked[name], reverse=True)]


@dataclass(frozen=True)
class Place:
    """Where a study's parts lie. images: the folder of pictures; all paths are absolute."""

    out: Path
    images: str
    tokenizer: str
    tokenadapt: str

    @property
    def data(self) -> Path:
        """Folder of the tokens' dataset."""
        return self.out / "data"

    @property
    def scores(self) -> Path:
        """Folder of the pictures' consistency."""
        return self.out / "consistency"

    def run(self, name: str) -> Path:
        """Folder of a training run."""
        return self.out / "runs" / name

    def keys(self, name: str) -> Path:
        """File that names the pictures of a part."""
        return self.out / "keys" / f"{name}.txt"

    def variant(self, arm: Arm) -> Path:
        """Folder of pictures that were made smaller."""
        return self.out / "stored" / arm.name


def place_of(config: StudyConfig, images: Path) -> Place:
    """Where the parts of a study of the pictures in `images` lie."""
    out = config.out.resolve()
    own = {name: out / name / f"{name}.safetensors" for name in ("tokenizer", "tokenadapt")}
    given = {name: absolute_url(getattr(config, name)) or str(own[name]) for name in own}
    return Place(out, str(images), **given)


def token_jobs(config: StudyConfig, place: Place) -> Iterator[Job]:
    """From pictures to tokens, and TokenAdapt; what was given is not trained."""
    pictures = ("--pictures.images", place.images)
    needs: list[str] = []
    if not config.tokenizer:
        yield _job(config, "tokenizer", place.tokenizer, pictures)
        needs = ["tokenizer"]
    words = [
        *("ingest", "--images", place.images, "--tokenizer", place.tokenizer, "--mode", "replace"),
        *(
            "--root",
            str(place.data),
            "--dataset",
            DATASET,
            "--rows-per-shard",
            f"{config.shard_rows}",
        ),
    ]
    version = place.data / DATASET / "versions" / "00000001.json"
    yield Job("ingest", "services.cli", words, [version], needs, places=True)
    if not config.tokenadapt:
        more = (*pictures, "--tokenizer", place.tokenizer)
        yield _job(config, "tokenadapt", place.tokenadapt, more, needs)


def _job(
    config: StudyConfig, name: str, made: str, words: Sequence[str], needs: Sequence[str] = ()
) -> Job:
    """Training the tokenizer, or TokenAdapt: they leave the file `made`."""
    recipe, options = (getattr(config, f"{name}_{part}") for part in ("recipe", "options"))
    return Job(
        name,
        f"trainers.{name}",
        [
            *("--recipe", recipe, *words, "--out", str(Path(made).parent)),
            *alone(config),
            *shlex.split(options),
        ],
        [Path(made)],
        needs,
        places=config.on_ray,
    )


def alone(config: StudyConfig) -> tuple[str, ...]:
    """Words by which a run computes in its job's own process."""
    return () if config.on_ray else ("--cluster.no-ray",)


def pixel_job(
    config: StudyConfig,
    place: Place,
    name: str,
    seed: int,
    *,
    images: str = "",
    keys: Path | None = None,
    options: str = "",
) -> Job:
    """A pixel classifier on the pictures of `images`, or on the part that `keys` names."""
    out = place.run(name)
    words = [
        *("--recipe", config.pixels, "--pictures.images", images or place.images),
        *("--loop.seed", str(seed), "--out", str(out)),
        *(("--pictures.keys", str(keys)) if keys else ()),
        *alone(config),
        *shlex.split(f"{config.options} {config.pixel_options} {options}"),
    ]
    module = "trainers.classify_pixels"
    return Job(name, module, words, [out / MODEL], places=config.on_ray)


def point_name(arm: Arm, seed: int) -> str:
    """Name of a pixel classifier's job, and of its run's folder."""
    return f"pixels-{arm.name}-seed{seed}"


def pixel_jobs(config: StudyConfig, place: Place, training: Sequence[Picture]) -> list[Job]:
    """All points of the arms that keep pixels, once what they read stands."""
    jobs = []
    for seed in range(config.seeds):
        for arm in arms(config):
            if arm.of_tokens:
                continue
            keys, images = None, ""
            if arm.method in ("random", "cscore"):
                part = subset(config, place, arm, seed, training)
                keys = write_keys(place.keys(f"{arm.name}-seed{seed}"), part)
            elif arm.method != "full":
                images = str(place.variant(arm))
            name = point_name(arm, seed)
            jobs.append(pixel_job(config, place, name, seed, images=images, keys=keys))
    return jobs


def variant_jobs(config: StudyConfig, place: Place) -> Iterator[Job]:
    """The folders of pictures made smaller."""
    for arm in arms(config):
        if arm.method in ("jpeg", "resolution"):
            out, value = place.variant(arm), f"{arm.value:g}"
            option = "--jpeg-quality" if arm.method == "jpeg" else "--resolution"
            words = ["--images", place.images, "--out", str(out), option, value]
            name = f"pictures-{arm.name}"
            yield Job(name, "trainers.picture_variant", words, [out / VARIANT])


def score_jobs(config: StudyConfig, place: Place, training: Sequence[Picture]) -> Iterator[Job]:
    """The models that consistency is estimated by, and the estimate."""
    if not config.cscore:
        return
    names = []
    for number in range(config.cscore_models):
        pair, second = divmod(number, 2)
        half = stratified(training, 0.5, at_random(pair, "consistency"))
        if second:
            first = {picture.key for picture in half}
            half = [picture for picture in training if picture.key not in first]
        name = f"half-{pair}{'ab'[second]}"
        keys = write_keys(place.keys(name), half)
        yield pixel_job(config, place, name, number, keys=keys, options=config.cscore_options)
        names.append(name)
    models = [str(place.run(name)) for name in names]
    words = ["--model", *models, "--out", str(place.scores)]
    yield Job("consistency", "trainers.consistency", words, [place.scores / SCORES], names)


def subset(
    config: StudyConfig, place: Place, arm: Arm, seed: int, training: Sequence[Picture]
) -> list[Picture]:
    """The pictures of a part: the same share of each class. C-score's is the same for all seeds."""
    if arm.method == "random":
        return stratified(training, arm.value, at_random(seed, "subset"))
    scores = read_scores(str(place.scores / SCORES))
    sign = -1 if config.keep == "consistent" else 1

    def order(picture: Picture) -> tuple[float, float, str]:
        share, given = scores[picture.key]
        return sign * share, sign * given, picture.key

    return stratified(training, arm.value, order)


def kept(
    config: StudyConfig, place: Place, arm: Arm, seed: int, training: Sequence[Picture]
) -> tuple[int, int]:
    """(pictures, bytes) that an arm of pixels keeps to train on."""
    if arm.method in ("jpeg", "resolution"):
        report = read_json(open_store(str(place.variant(arm))), VARIANT)["splits"]["train"]
        return report["pictures"], report["bytes"]
    part = training if arm.method == "full" else subset(config, place, arm, seed, training)
    return len(part), sum(source_bytes(picture.path) for picture in part)
