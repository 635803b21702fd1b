"""Storage against accuracy, the paper's Table 1 and Figure 1: `seit storage-study --help`.

The same vision transformer at the same budget on full pixels, random and C-score subsets, lower
JPEG quality and resolution, SeiT's tokens, and SeiT++. Every step is a Ray job.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from services.augment.tokenadapt import TokenAdapt
from services.pictures import Picture
from services.shards.store import read_as
from services.stream.jobs import jobs_at
from services.tokens.tokenizer import load_tokenizer
from trainers.chain import fingerprint
from trainers.checkpoint import MODEL
from trainers.config import ClassifyRun, MtmRun
from trainers.figures import read_curve
from trainers.job_graph import Job, JobGraph
from trainers.options import R, Recipes, parse
from trainers.picture_config import PicturesConfig, PixelRun, TokenAdaptRun
from trainers.picture_streams import TRAIN, split_pictures
from trainers.program import RESUMES, program
from trainers.recipes.classify import RECIPES as CLASSIFY_RECIPES
from trainers.recipes.mtm import RECIPES as MTM_RECIPES
from trainers.recipes.pixels import RECIPES as PIXEL_RECIPES
from trainers.recipes.tokenadapt import RECIPES as TOKENADAPT_RECIPES
from trainers.recipes.tokenizer import RECIPES as TOKENIZER_RECIPES
from trainers.storage_arms import (
    DATASET,
    Arm,
    Place,
    StudyConfig,
    alone,
    arms,
    kept,
    pixel_jobs,
    place_of,
    point_name,
    score_jobs,
    token_jobs,
    variant_jobs,
)
from trainers.storage_report import Found, report
from trainers.sweep import Setting, Sweep, SweepConfig, open_data
from trainers.sweep_data import kind_of, pictures_of
from trainers.sweep_report import storage_bytes
from trainers.tokenadapt_report import check_belongs
from trainers.tokenizer_config import TokenizerRun

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when table and chart stand, 2 after an error of ours, 130 when interrupted."""
    return program(
        StudyConfig,
        study,
        argv,
        description=__doc__,
        prog="seit storage-study",
        interrupted=RESUMES,
    )


def study(config: StudyConfig) -> None:
    """Run what is missing, write OUT/storage_study.json and .png, and log the table.

    Raises: SeitError, StoppedError.
    """
    kind = kind_of(config.images)
    config = replace(
        config,
        overrides={**kind.overrides, **config.overrides},
        tokenizer_options=f"{shlex.join(kind.tokenizer)} {config.tokenizer_options}".strip(),
    )
    _check(config)
    place = place_of(config, pictures_of(config.images, config.out.resolve()))
    made_from = fingerprint(Path(place.images))  # bad pictures are said before a cluster starts
    training = split_pictures(PicturesConfig(place.images))[1][TRAIN]
    prepared = [
        *token_jobs(config, place),
        *variant_jobs(config, place),
        *score_jobs(config, place, training),
    ]
    with jobs_at(config.cluster.address) as jobs:
        graph = JobGraph(jobs, config.cluster, place.out, made_from)
        graph.run(prepared)
        data = open_data(str(place.data), DATASET, None, place.tokenadapt)
        sweep = Sweep(_sweep_config(config, place), data, {})
        graph.run(_in_turn(pixel_jobs(config, place, training), _token_points(config, sweep)))
    found = [
        _found(config, place, arm, seed, training, sweep)
        for arm in arms(config)
        for seed in range(config.seeds)
    ]
    text, files = report(config, data, found)
    logger.info("%s", text)
    for file in files:
        logger.info("written: %s", file)


def _check(config: StudyConfig) -> None:
    """Refuse what a job would refuse hours later: options that no program has, and files that do
    not belong together. Wrong options end the process with code 2, as those of the programs do."""
    common = f"{' '.join(alone(config))} {config.options}"
    pixels, tokens = (f"{common} {o}" for o in (config.pixel_options, config.token_options))

    def check(kind: type[R], recipes: Recipes[R], recipe: str, options: str) -> None:
        parse(kind, recipes, ["--recipe", recipe, *shlex.split(options)])

    check(PixelRun, PIXEL_RECIPES, config.pixels, pixels)
    check(PixelRun, PIXEL_RECIPES, config.pixels, f"{pixels} {config.cscore_options}")
    check(ClassifyRun, CLASSIFY_RECIPES, config.scratch, tokens)
    check(ClassifyRun, CLASSIFY_RECIPES, config.finetune, tokens)
    check(MtmRun, MTM_RECIPES, config.mtm, config.mtm_options)
    check(TokenizerRun, TOKENIZER_RECIPES, config.tokenizer_recipe, config.tokenizer_options)
    adapt = config.tokenadapt_options
    check(TokenAdaptRun, TOKENADAPT_RECIPES, config.tokenadapt_recipe, adapt)
    if config.tokenizer:
        tokenizer = read_as(config.tokenizer, load_tokenizer)
        if config.tokenadapt:
            weights = read_as(config.tokenadapt, TokenAdapt.from_bytes)
            check_belongs(weights, tokenizer.spec, tokenizer.codebook)


def _sweep_config(config: StudyConfig, place: Place) -> SweepConfig:
    """The token classifiers as the sweeps name their runs."""
    return SweepConfig(
        out=place.out,
        root=str(place.data),
        dataset=DATASET,
        tokenadapt=place.tokenadapt,
        seeds=config.seeds,
        mtm=config.mtm,
        finetune=config.finetune,
        scratch=config.scratch,
        mtm_options=config.mtm_options,
        classify_options=f"{config.options} {config.token_options}".strip(),
        overrides=config.overrides,
        coloradapt=config.coloradapt,
        ray=config.on_ray,
    )


def _setting(arm: Arm, sweep: Sweep) -> Setting:
    whole = arm.method == "seitpp"
    return Setting(whole, whole, whole, sweep.data.part(arm.value))


def _token_points(config: StudyConfig, sweep: Sweep) -> list[Job]:
    """All points of the arms that keep tokens: SeiT++ pre-trains first."""
    jobs = []
    for seed in range(config.seeds):
        for arm in arms(config):
            if not arm.of_tokens:
                continue
            needs: list[str] = []
            for module, *words in sweep.commands(_setting(arm, sweep), seed):
                out = sweep.folder(module, _setting(arm, sweep), seed)
                jobs.append(
                    Job(
                        out.name,
                        f"trainers.{module}",
                        words,
                        [out / MODEL],
                        needs,
                        places=config.on_ray,
                    )
                )
                needs = [out.name]
    return jobs


def _in_turn(*kinds: Sequence[Job]) -> list[Job]:
    """Seed by seed, so that a study that was stopped has compared what it has."""
    jobs = [job for kind in kinds for job in kind]
    return sorted(jobs, key=lambda job: int(job.name.rpartition("seed")[2]))


def _found(
    config: StudyConfig,
    place: Place,
    arm: Arm,
    seed: int,
    training: Sequence[Picture],
    sweep: Sweep,
) -> Found:
    """What a finished point reached, and what it keeps."""
    steps = 0
    if arm.of_tokens:
        setting = _setting(arm, sweep)
        pictures, size = setting.rows, storage_bytes(sweep.data, setting.rows)
        folder = sweep.folder("classify", setting, seed)
        if setting.mtm:
            steps = read_curve(sweep.folder("mtm", setting, seed), "loss")[0][-1]
    else:
        pictures, size = kept(config, place, arm, seed, training)
        folder = place.run(point_name(arm, seed))
    figures = {name: read_curve(folder, f"validation_{name}")[1][-1] for name in ("top1", "loss")}
    return Found(
        arm=arm,
        seed=seed,
        pictures=pictures,
        bytes=size,
        steps=read_curve(folder, "loss")[0][-1],
        pretraining_steps=steps,
        **figures,
    )


if __name__ == "__main__":
    raise SystemExit(main())
