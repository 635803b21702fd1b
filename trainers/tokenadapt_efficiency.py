"""How many pictures TokenAdapt needs, the paper's Table A:
`python trainers/tokenadapt_efficiency.py --help`.

TokenAdapt learns from 100 pictures, 1,000, and so on up to all, for the same number of steps; each
is judged by how many ids it gets right on held-out pictures, and by the accuracy of a classifier
that is trained from scratch with it (SeiT++ without MTM). Every run is a Ray job.
"""

from __future__ import annotations

import logging
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from services.pictures import Picture
from services.shards.store import absolute_url, open_store
from services.stream.jobs import jobs_at
from trainers.chain import fingerprint
from trainers.charts import COLOURS, save_figure
from trainers.checkpoint import MODEL
from trainers.data_config import Numbers, require
from trainers.estimate import Estimate, estimate
from trainers.figures import read_curve
from trainers.job_graph import ClusterOptions, Job, JobGraph
from trainers.options import parse
from trainers.picture_config import PicturesConfig, TokenAdaptRun
from trainers.picture_streams import TRAIN, split_pictures
from trainers.picture_subsets import at_random, write_keys
from trainers.program import RESUMES, program
from trainers.recipes.tokenadapt import RECIPES
from trainers.reports import as_text, machine, read_json, strict_json
from trainers.sweep import Data, Setting, Sweep, SweepConfig, described, open_data
from trainers.sweep_data import kind_of, pictures_of, prepare
from trainers.sweep_main import hush_runs
from trainers.tokenadapt_compare import METHODS, OPERATIONS
from trainers.tokenadapt_step import REPORT, TOKENADAPT

logger = logging.getLogger(__name__)

PAPER = {100: 75.1, 1_000: 75.4, 5_000: 75.4, 256_000: 75.4, 1_281_000: 75.5}
"""Top-1 in percent of ViT-B on ImageNet-1k, by pictures (Table A)."""
_PAPER_WITHOUT = 74.0  # SeiT
_NAIVE = METHODS[1]


@dataclass(frozen=True)
class EfficiencyConfig:
    """TokenAdapt trained on few pictures and on many: its agreement, and accuracy with it."""

    out: Path
    """Folder for runs, notes of jobs, table and picture. Shared, where jobs run elsewhere."""
    images: str = "digits"
    """Folder of class/picture files, or "digits", "textures" or "shapes", which are made here
    first."""
    tokenizer: str = ""
    """Tokenizer (.safetensors) of the dataset below; empty makes small tokens of the pictures
    here first."""
    root: str = ""
    """Folder that holds datasets, for the classifiers."""
    dataset: str = ""
    """Name of the dataset of these pictures' tokens."""
    counts: tuple[int, ...] = (100, 1000)
    """Pictures that TokenAdapt learns from (count); all of them are added."""
    seeds: int = 3
    """Seeds of each point (count), from 0; each draws its own pictures."""
    recipe: str = "tokenadapt-tiny"
    """Recipe of TokenAdapt."""
    options: str = ""
    """More options of it, after an equals sign: --options="--loop.epochs 20"."""
    classify: bool = True
    """Whether classifiers are trained, with each of them and one without; the option switches that
    off."""
    scratch: str = "scratch-tiny"
    """Recipe of the classifiers."""
    classify_options: str = ""
    """More options of these."""
    overrides: Numbers = field(default_factory=dict)
    """Numbers of the classifiers' augmentation to change."""
    coloradapt: float = 0.25
    """Share of the blocks that ColorAdapt changes, where TokenAdapt augments too."""
    on_ray: bool = False
    """Train with Ray Train on the cluster's workers, rather than in a job's own process."""
    cluster: ClusterOptions = field(default_factory=ClusterOptions)

    def __post_init__(self) -> None:
        require(self.seeds >= 1, "seeds", self.seeds, "at least 1")
        distinct = len(set(self.counts)) == len(self.counts)
        valid = distinct and all(count >= 1 for count in self.counts)
        require(valid, "counts", self.counts, "different numbers from 1 on")
        given = (self.tokenizer, self.root, self.dataset)
        require(all(given) or not any(given), "tokenizer, root, dataset", given, "all or none")
        require(self.recipe in RECIPES, "recipe", self.recipe, f"one of {', '.join(RECIPES)}")
        self.sweep(Path(self.out))  # one place knows what makes the rest valid

    def sweep(self, out: Path, root: str = "-", tokenadapt: str = "-") -> SweepConfig:
        """The classifiers of one seed as the sweeps name them."""
        return SweepConfig(
            out=out,
            root=root,
            dataset=self.dataset or "-",
            tokenadapt=tokenadapt,
            seeds=self.seeds,
            scratch=self.scratch,
            classify_options=self.classify_options,
            overrides=self.overrides,
            coloradapt=self.coloradapt,
            ray=self.on_ray,
        )


@dataclass(frozen=True)
class Line:
    """A row of the table. count: pictures, 0 without TokenAdapt. Shares, by operation and seed."""

    count: int
    agreement: Mapping[str, Sequence[float]]
    top1: Sequence[float]

    @property
    def mean(self) -> Estimate:
        """Agreement, the mean over operations."""
        return estimate(
            [statistics.fmean(each) for each in zip(*self.agreement.values(), strict=True)]
        )


@dataclass(frozen=True)
class _Study:
    """What the jobs of a study read."""

    config: EfficiencyConfig
    images: str
    tokenizer: str
    data: Data
    overrides: Mapping[str, float]
    training: Sequence[Picture]

    @property
    def counts(self) -> list[int]:
        return [*sorted(self.config.counts), len(self.training)]

    def adapt(self, count: int, seed: int) -> Path:
        """Folder of TokenAdapt's run."""
        return self.config.out.resolve() / "runs" / f"tokenadapt-{count}-seed{seed}"

    def classifiers(self, count: int, seed: int) -> tuple[Sweep, Setting]:
        """The classifier that is trained with it; without TokenAdapt for a count of 0."""
        out = self.config.out.resolve() / (f"with-{count}" if count else "without")
        weights = str(self.adapt(count, seed) / TOKENADAPT)
        config = self.config.sweep(out, self.data.root, weights)
        data = replace(self.data, tokenadapt=weights)
        setting = Setting(False, bool(count), bool(count), data.rows)
        return Sweep(config, data, dict(self.overrides)), setting


def main(argv: Sequence[str] | None = None) -> int:
    """0 when table and picture stand, 2 after an error of ours, 130 when interrupted."""
    return program(EfficiencyConfig, efficiency, argv, description=__doc__, interrupted=RESUMES)


def efficiency(config: EfficiencyConfig) -> None:
    """Run what is missing, write OUT/tokenadapt_efficiency.json and .png, and log the table."""
    parse(TokenAdaptRun, RECIPES, ["--recipe", config.recipe, *shlex.split(config.options)])
    hush_runs(logger)
    study = _open(config)
    with jobs_at(config.cluster.address) as jobs:
        made_from = fingerprint(Path(study.images))
        JobGraph(jobs, config.cluster, config.out.resolve(), made_from).run(_jobs(study))
    lines = [_line(study, count) for count in (0, *study.counts) if count or config.classify]
    naive = _naive(study)
    logger.info("%s", as_text(_table(config, lines, naive)))
    logger.info("written: %s", _write(study, lines, naive))
    logger.info("written: %s", _draw(config, lines, naive))


def _open(config: EfficiencyConfig) -> _Study:
    out = config.out.resolve()
    overrides: Mapping[str, float] = {}
    if config.tokenizer:
        images = pictures_of(config.images, out)
        tokenizer = absolute_url(config.tokenizer)
        data = open_data(config.root, config.dataset, None, "")
    else:
        tokens = SweepConfig(out=config.out, pictures=config.images)
        data, overrides = prepare(tokens)
        images = pictures_of(config.images, out)
        tokenizer = str(out / "tokenizer" / "tokenizer.safetensors")
    training = split_pictures(PicturesConfig(str(images)))[1][TRAIN]
    most = max(config.counts, default=0)
    valid = f"below the {len(training)} pictures of the training split, which are added"
    require(most < len(training), "counts", config.counts, valid)
    return _Study(config, str(images), tokenizer, data, overrides, training)


def _jobs(study: _Study) -> list[Job]:
    """TokenAdapt on each number of pictures and a classifier with it, seed by seed."""
    config, jobs = study.config, []
    for seed in range(config.seeds):
        for count in study.counts:
            out = study.adapt(count, seed)
            words = [
                *("--recipe", config.recipe, "--pictures.images", study.images),
                *("--tokenizer", study.tokenizer, "--loop.seed", str(seed), "--out", str(out)),
            ]
            if count < len(study.training):
                some = sorted(study.training, key=at_random(seed, "tokenadapt"))[:count]
                keys = config.out.resolve() / "keys" / f"{count}-seed{seed}.txt"
                words += ["--pictures.keys", str(write_keys(keys, some))]
            words += [
                *([] if config.on_ray else ["--cluster.no-ray"]),
                *shlex.split(config.options),
            ]
            made = [out / TOKENADAPT, out / REPORT]
            jobs.append(Job(out.name, "trainers.tokenadapt", words, made, places=config.on_ray))
        for count in (0, *study.counts) if config.classify else ():
            sweep, setting = study.classifiers(count, seed)
            ((module, *words),) = sweep.commands(setting, seed)
            out = sweep.folder(module, setting, seed)
            name = f"classify-{count}-seed{seed}"
            needs = [study.adapt(count, seed).name] if count else []
            made = [out / MODEL]
            jobs.append(Job(name, f"trainers.{module}", words, made, needs, places=config.on_ray))
    return jobs


def _line(study: _Study, count: int) -> Line:
    seeds = range(study.config.seeds)
    top1 = []
    for seed in seeds if study.config.classify else ():
        sweep, setting = study.classifiers(count, seed)
        folder = sweep.folder("classify", setting, seed)
        top1.append(read_curve(folder, "validation_top1")[1][-1])
    reports = [_report(study, count, seed) for seed in seeds if count]
    found = {name: [r[name][METHODS[0]]["agreement"] for r in reports] for name in OPERATIONS}
    return Line(count, found, top1)


def _naive(study: _Study) -> Mapping[str, float]:
    """Agreement of moving tokens naively, by operation: no training changes it."""
    report = _report(study, study.counts[-1], 0)
    return {name: report[name][_NAIVE]["agreement"] for name in OPERATIONS}


def _report(study: _Study, count: int, seed: int) -> dict[str, Any]:
    found = read_json(open_store(str(study.adapt(count, seed))), REPORT)
    operations: dict[str, Any] = found["operations"]
    return operations


def _table(config: EfficiencyConfig, lines: Sequence[Line], naive: Mapping[str, float]) -> Table:
    title = f"ids that TokenAdapt gets right (%), by pictures it learned from; {config.seeds} seeds"
    table = Table("pictures", *OPERATIONS, "mean", title=title)
    if config.classify:
        table.add_column("top-1 (%)")
    table.add_column("paper, top-1")
    paper = {0: _PAPER_WITHOUT, lines[-1].count: max(PAPER.values()), **PAPER}
    for line in lines:
        by_operation = [line.agreement[name] for name in OPERATIONS]
        cells = [f"{100 * statistics.fmean(each):.1f}" if each else "" for each in by_operation]
        cells.append(str(line.mean) if line.count else "")
        if config.classify:
            cells.append(str(estimate(line.top1)))
        name = f"{line.count:,}" if line.count else "none (SeiT)"
        table.add_row(name, *cells, str(paper.get(line.count, "")))
    table.add_section()
    found = [f"{100 * naive[name]:.1f}" for name in OPERATIONS]
    table.add_row("naively", *found, f"{100 * statistics.fmean(naive.values()):.1f}")
    return table


def _write(study: _Study, lines: Sequence[Line], naive: Mapping[str, float]) -> Path:
    """Every point; no path of this machine in it."""
    config = study.config
    names = ("recipe", "options", "scratch", "classify_options", "coloradapt", "seeds")
    content = {
        "name": "tokenadapt_efficiency",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "pictures": kind_of(config.images).title,
        "tokens": described(study.data),
        "recipes": {name: getattr(config, name) for name in names},
        "agreement_naive": naive,
        "lines": [
            {
                "pictures": line.count,
                "agreement": line.agreement,
                "agreement_mean": line.mean.about() if line.count else None,
                "top1": line.top1,
            }
            for line in lines
        ],
        "paper_top1_percent": PAPER,
    }
    text = strict_json(content, indent=2) + "\n"
    open_store(str(config.out.resolve())).write("tokenadapt_efficiency.json", text.encode())
    return config.out / "tokenadapt_efficiency.json"


def _draw(config: EfficiencyConfig, lines: Sequence[Line], naive: Mapping[str, float]) -> Path:
    """Agreement by pictures, and accuracy."""
    trained = [line for line in lines if line.count]
    counts = [line.count for line in trained]
    figure = Figure(figsize=(5.2 * (1 + config.classify), 4))
    axes = figure.subplots(1, 1 + config.classify, squeeze=False)[0]
    shown = ("hflip", "affine", "crop", "mixup")
    for colour, name in zip(COLOURS, shown, strict=False):
        values = [100 * statistics.fmean(line.agreement[name]) for line in trained]
        axes[0].plot(counts, values, "o-", color=colour, label=name)
        axes[0].axhline(100 * naive[name], color=colour, linestyle=":", linewidth=1)
    axes[0].set_title("ids that are right (dotted: moved naively)", fontsize=10)
    axes[0].set_ylabel("%")
    if config.classify:
        found = [estimate(line.top1) for line in trained]
        errors = [0 if math.isnan(each.error) else 100 * each.error for each in found]
        means = [100 * each.mean for each in found]
        axes[1].errorbar(counts, means, yerr=errors, marker="o", color=COLOURS[0], capsize=3,
                         label="with TokenAdapt and ColorAdapt")  # fmt: skip
        plain = 100 * estimate(lines[0].top1).mean
        axes[1].axhline(plain, color=COLOURS[5], linestyle="--", label="SeiT, without")
        axes[1].set_title("classifier from scratch: top-1 (%)", fontsize=10)
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xlabel("pictures that TokenAdapt learned from (log scale)")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    return save_figure(figure, config.out / "tokenadapt_efficiency.png")


if __name__ == "__main__":
    raise SystemExit(main())
