"""Seeds that no generator takes are refused before any work, by every program alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from services.cli import main as seit
from services.plan.draws import check_seed
from trainers import evaluate, picture_variant, scenes, separability, tokenadapt_report
from trainers import tokenizer_dct as dct
from trainers.config import ClassifyRun, MtmRun
from trainers.options import parse
from trainers.picture_config import PixelRun
from trainers.recipes import classify, mtm, pixels

Program = Callable[[Sequence[str]], object]

PROGRAMS: dict[str, tuple[Program, str, str, int]] = {
    # Its words, of which {here} is an empty folder, its option, and the bits of that seed.
    "separability": (
        separability.main,
        "--model {here}/m --root {here} --dataset d --out {here}/o",
        "--seed",
        32,
    ),
    "evaluate": (
        evaluate.main,
        "--model {here}/m --images {here}/i --tokenizer {here}/t --out {here}/o",
        "--seed",
        64,
    ),
    "dct": (dct.main, "--pictures.images {here}/i --out {here}/o", "--seed", 64),
    "dct-split": (dct.main, "--pictures.images {here}/i --out {here}/o", "--pictures.seed", 64),
    "tokenadapt-report": (
        tokenadapt_report.main,
        "--tokenadapt {here}/a --tokenizer {here}/t --out {here}/o",
        "--seed",
        64,
    ),
    "picture-variant": (
        picture_variant.main,
        "--images {here}/i --out {here}/o --jpeg-quality 50",
        "--seed",
        64,
    ),
    "scenes": (scenes.main, "--out {here}/o", "--seed", 64),
    "mtm": (partial(parse, MtmRun, mtm.RECIPES), "", "--loop.seed", 64),
    "subset": (partial(parse, ClassifyRun, classify.RECIPES), "", "--data.subset-seed", 64),
    "pixels": (partial(parse, PixelRun, pixels.RECIPES), "", "--pictures.seed", 64),
    "ingest": (
        seit,
        "ingest --images {here}/i --root {here} --dataset d --tokenizer {here}/t",
        "--seed",
        64,
    ),
    "gallery": (seit, "gallery {here} d --out {here}/o.png", "--seed", 64),
    "simulate": (seit, "simulate --rows 100 --nodes 1 --gpus 1", "--seed", 64),
}


@pytest.mark.parametrize("seed", [-1, 2**64, 10**30])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_seed_that_no_generator_takes_is_refused(
    name: str, seed: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program, words, option, bits = PROGRAMS[name]
    try:
        code = program([*words.format(here=tmp_path).split(), f"{option}={seed}"])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    told = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert f"seed is {seed}, it must be in 0..2**{bits}-1" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", [32, 64])
def test_the_whole_range_is_taken(bits: int) -> None:
    for seed in (0, 1, 2**bits - 1):
        check_seed("seed", seed, bits)
    with pytest.raises(ValueError, match=rf"seed is {2**bits}, .*\.\.2\*\*{bits}-1"):
        check_seed("seed", 2**bits, bits)
