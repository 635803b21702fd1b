"""The command line: recipes, changes to them, and values that make no run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from services.errors import InvalidInputError
from tests.trainers.runs import classify_run, mtm_run
from trainers.config import ClassifyRun, MtmRun, Run
from trainers.optim import peak_rate
from trainers.options import parse
from trainers.recipes import classify, mtm

ALL: dict[str, Run] = {
    name: make() for recipes in (mtm.RECIPES, classify.RECIPES) for name, make in recipes.items()
}


def test_a_recipe_is_changed_by_options() -> None:
    argv = ["--loop.epochs", "50", "--recipe", "mtm-tiny", "--optim.warmup-epochs=2"]
    run = parse(MtmRun, mtm.RECIPES, [*argv, "--augment.overrides", "adapt.share", "0.25"])
    base = mtm.mtm_tiny()
    assert run == replace(
        base,
        loop=replace(base.loop, epochs=50),
        optim=replace(base.optim, warmup_epochs=2.0),
        augment=replace(base.augment, overrides={"adapt.share": 0.25}),
    )
    assert parse(MtmRun, mtm.RECIPES, []) == mtm.mtm_base()
    assert parse(ClassifyRun, classify.RECIPES, ["--recipe=scratch-tiny"]) == ALL["scratch-tiny"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (None, classify.finetune_tiny().augment.overrides),
        ([], {}),
        (["adapt.share", "0.25"], {"adapt.share": 0.25}),
        (["adapt.share", "1", "color.share", "0"], {"adapt.share": 1.0, "color.share": 0.0}),
    ],
)
def test_overrides_of_a_recipe_can_be_replaced_and_emptied(
    words: list[str] | None, expected: dict[str, float]
) -> None:
    argv = [] if words is None else ["--augment.overrides", *words, "--loop.seed", "4"]
    run = parse(ClassifyRun, classify.RECIPES, ["--recipe", "finetune-tiny", *argv])
    assert run.augment.overrides == expected


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--recipe", "mtm-huge"], "mtm-tiny"),
        (["--recipe"], "mtm-base"),
        (["--order.block", "100"], "choose one of 1, 2, 4"),
        (["--loop.epochs", "20"], "less than loop.epochs, 20"),
        (["--augment.crop", "27"], "a multiple of model.patch, 2"),
        (["--optim.beta1", "1.5"], "at least 0 and below 1"),
        (["--optim.min-lr", "0.01"], "at most the highest rate, 0.0024"),
        (["--optim.layer-decay", "0"], "above 0 and at most 1"),
        (["--model.dropout", "1"], "at least 0 and below 1"),
        (["--model.heads", "5"], "a divisor of model.width, 768"),
        (["--model.decoder-heads", "15"], "a divisor of model.decoder_width, 512"),
        (["--model.width", "42", "--model.heads", "2"], "a multiple of 4"),
        (["--model.size", "huge"], "large"),
        (["--loop.epoch", "3"], "--loop.epochs"),
        (["--augment.overrides", "adapt.share"], "'adapt.share' has no value"),
        (["--augment.overrides", "adapt.share", "much"], "much"),
        (["--cluster.no-ray", "--cluster.workers", "2"], "1 with --cluster.no-ray"),
        (["--cluster.workers", "5"], "a divisor of the 32 blocks of a step"),
    ],
)
def test_wrong_options_end_with_code_2(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(MtmRun, mtm.RECIPES, argv)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert said in " ".join((captured.err + captured.out).replace("│", "").split())


def test_help_shows_each_option_and_the_recipes_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(MtmRun, mtm.RECIPES, ["--recipe", "mtm-tiny", "--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", "").split())
    run = mtm.mtm_tiny()
    for part in fields(run):
        value = getattr(run, part.name)
        if is_dataclass(value):
            for option in fields(value):
                assert f"--{part.name}.{option.name}".replace("_", "-") in shown
    rows = run.order.global_batch
    assert f"Rows of one optimizer step, over all workers. (default: {rows})" in shown
    assert "mtm-base: ViT-B on ImageNet-1k" in shown
    assert "--recipe STR" in shown
    assert "(default: mtm-tiny)" in shown


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("mtm-base", 2.4e-3),
        ("finetune-base", 4e-3),
        ("scratch-base", 1.5e-3),
        ("scratch-small-in100", 1.5e-3),
        ("transfer", 7.5e-5),
    ],
)
def test_published_learning_rates(name: str, peak: float) -> None:
    run = ALL[name]
    optim = run.optim
    rate = peak_rate(optim.base_lr, run.order.global_batch, optim.base_batch, optim.base_power)
    assert rate == pytest.approx(peak)


def test_an_elastic_run_may_have_any_number_of_workers_between(tmp_path: Path) -> None:
    run = mtm.mtm_base()
    elastic = replace(run, cluster=replace(run.cluster, workers=16, min_workers=3))
    assert list(elastic.worlds) == list(range(3, 17))


def test_identity_leaves_out_the_machine_and_the_upkeep(tmp_path: Path) -> None:
    run = mtm_run(tmp_path)
    same = replace(
        run,
        out="elsewhere",
        cluster=replace(run.cluster, no_ray=False, workers=4),
        loop=replace(run.loop, checkpoint_every=7, keep=9, grad_accum=2),
    )
    assert same.identity() == run.identity()
    for changed in (
        replace(run, loop=replace(run.loop, epochs=3)),
        replace(run, optim=replace(run.optim, base_lr=0.5)),
        classify_run(tmp_path),
    ):
        assert changed.identity() != run.identity()
    assert json.loads(run.to_json())["order"]["global_batch"] == run.order.global_batch


def test_a_run_says_which_recipe_it_changed_and_may_be_resumed_without_it() -> None:
    run = parse(MtmRun, mtm.RECIPES, ["--recipe", "mtm-tiny"])
    assert json.loads(run.to_json())["recipe"] == "mtm-tiny"
    assert "recipe" not in run.identity()


def test_errors_name_value_range_and_consequence() -> None:
    with pytest.raises(InvalidInputError, match=r"loop\.keep is 0, it must be at least 1"):
        replace(mtm.mtm_base().loop, keep=0)
    with pytest.raises(InvalidInputError, match=r"share_lag is 8, it must be 0 with --cluster\.no"):
        replace(mtm.mtm_base().cluster, workers=1, no_ray=True, share_lag=8)


@pytest.mark.parametrize("option", ["optim.base-lr", "optim.clip", "cluster.cpus-per-worker"])
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_options_are_finite(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(MtmRun, mtm.RECIPES, [f"--{option}", value])
    assert ended.value.code == 2
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert f"{option.replace('-', '_')} is {value}, it must be" in told


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_numbers_of_the_augmentation_are_finite(
    value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(MtmRun, mtm.RECIPES, ["--augment.overrides", "eda.synonym_count", value])
    assert ended.value.code == 2
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert f"augment.overrides.eda.synonym_count is {value}, it must be a finite number" in told


def test_help_into_a_pipe_that_closes_is_no_error() -> None:
    text = (
        "from trainers.config import MtmRun\n"
        "from trainers.options import parse\n"
        "from trainers.recipes.mtm import RECIPES\n"
        "parse(MtmRun, RECIPES, ['--help'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()  # before it has said anything
        assert child.stderr.read() == b""
    assert child.returncode == 0
