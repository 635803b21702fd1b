"""The program as a user runs it: on tokens, on pictures, under corruptions, and what it refuses."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services.shards.store import open_store
from tests.small_datasets import write_dataset
from tests.trainers.classifiers import DATASET, MTM_SMALL, SMALL, World
from trainers.command import run
from trainers.config import MtmRun
from trainers.evaluate import main
from trainers.recipes.mtm import RECIPES as MTM_RECIPES
from trainers.robustness import CORRUPTIONS, SEVERITIES
from trainers.step import mtm_worker
from trainers.streams import settle


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEIT_CACHE_DIR", str(folder / "cache"))
        made = World(folder)
        made.train("ids", "--recipe", "scratch-tiny", "--augment.overrides")
        made.train("vectors", "--recipe", "scratch-tiny", "--augment.recipe", "scratch",
                   "--augment.overrides")  # fmt: skip
    return made


@pytest.fixture(autouse=True)
def _cache(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEIT_CACHE_DIR", str(world.folder / "cache"))


def tokens(world: World) -> tuple[str, ...]:
    return ("--root", str(world.root), "--dataset", DATASET)


def pictures(world: World) -> tuple[str, ...]:
    return (
        *("--images", str(world.pictures), "--tokenizer", str(world.tokenizer)),
        *("--validation-fraction", "0.3"),
    )


def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


@pytest.mark.parametrize("model", ["ids", "vectors"])
@pytest.mark.parametrize("batch", ["64", "5"])
def test_tokens_and_pictures_give_what_the_trainer_measured(
    world: World, model: str, batch: str, tmp_path: Path
) -> None:
    lines = (world.folder / model / "metrics.jsonl").read_text().splitlines()
    measured = [json.loads(line) for line in lines if "validation_top1" in line][-1]
    for kind, data in (("tokens", tokens(world)), ("pictures", pictures(world))):
        out = tmp_path / kind
        given = ("--model", str(world.folder / model), "--out", str(out), "--batch", batch)
        assert main([*given, *data]) == 0
        found = report(out)["models"][model]
        assert found["rows"] == len(world.splits["validation"])
        assert found["top1"] == pytest.approx(measured["validation_top1"])
        assert found["top5"] == pytest.approx(measured["validation_top5"])
        confused = found["confusion"]
        table = np.zeros((len(world.classes), len(confused["classes"])))
        table[confused["true"], confused["answered"]] = confused["rows"]
        assert table.sum(1).tolist() == [entry["rows"] for entry in found["classes"]]
        assert table.trace() / found["rows"] == pytest.approx(found["top1"])
        with Image.open(out / f"confusion-{model}.png") as picture:
            assert min(picture.size) > 200


def test_several_models_stand_in_one_report(world: World, tmp_path: Path) -> None:
    models = [str(world.folder / name) for name in ("ids", "vectors")]
    assert main(["--model", *models, "--out", str(tmp_path / "both"), *tokens(world)]) == 0
    both = report(tmp_path / "both")["models"]
    for name, model in zip(("ids", "vectors"), models, strict=True):
        assert main(["--model", model, "--out", str(tmp_path / name), *tokens(world)]) == 0
        assert report(tmp_path / name)["models"][name] == both[name]


def test_robustness_in_one_table_and_one_picture(world: World, tmp_path: Path) -> None:
    """Clean figures are those of the plain evaluation; shifted folders are those that are given."""
    out, model = tmp_path / "robust", str(world.folder / "ids")
    # The same pictures under other names of their classes, one of them unknown to the model.
    shifted = tmp_path / "shifted"
    for folder, name in (("class0", "zero"), ("class1", "one"), ("class1", "stranger")):
        shutil.copytree(world.pictures / folder, shifted / name)
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"zero": "class0", "one": ["class1", "class0"]}))
    argv = ["--model", model, "--out", str(out), *pictures(world), "--suite", "robustness"]
    argv += ["--shifted.sketch", str(world.pictures), "--shifted.objectnet", str(shifted)]
    assert main([*argv, "--shifted.objectnet-classes", str(names)]) == 0
    found = report(out)
    kinds = [condition["kind"] for condition in found["conditions"]]
    corrupted = [kind for kind in CORRUPTIONS for _ in SEVERITIES]
    assert kinds == ["clean", *corrupted, "sketch", "objectnet"]
    clean, objectnet = found["conditions"][0], found["conditions"][-1]
    assert main(["--model", model, "--out", str(tmp_path / "plain"), *pictures(world)]) == 0
    plain = report(tmp_path / "plain")["models"]["ids"]
    assert clean["models"]["ids"] == {name: plain[name] for name in clean["models"]["ids"]}
    for kind in CORRUPTIONS:
        each = [c["models"]["ids"]["top1"] for c in found["conditions"] if c["kind"] == kind]
        assert found["means"][kind]["ids"]["top1"] == pytest.approx(sum(each) / 5)
    assert found["conditions"][-2]["models"]["ids"]["rows"] == 40
    counted = {entry["class"]: entry for entry in objectnet["models"]["ids"]["classes"]}
    assert (counted["zero"]["rows"], counted["one"]["rows"]) == (20, 20)
    assert counted["stranger"]["rows"] == 0
    assert counted["one"]["top1"] == 1.0  # of two classes, both are right for it
    assert (out / "robustness.png").stat().st_size > 10_000


@pytest.fixture
def strange(world: World, tmp_path: Path) -> dict[str, str]:
    """Things that do not fit, by name."""
    write_dataset(open_store(str(world.root)), "other")  # another grid and codebook
    broken = tmp_path / "broken.json"
    broken.write_text('{"a": 3}')
    nowhere = tmp_path / "nowhere.json"
    nowhere.write_text('{"class0": "cat"}')
    return {
        "model": str(world.folder / "ids"),
        "data": str(world.root),
        "pictures": str(world.pictures),
        "tokenizer": str(world.tokenizer),
        "broken": str(broken),
        "nowhere": str(nowhere),
    }


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--model {model}", "either a root and a dataset, or images and a tokenizer"),
        ("--model {data} --root {data} --dataset boxes", "there is no exported model"),
        ("--model {model} --root {data} --dataset none", "none"),
        ("--model {model} --root {data} --dataset other", "codes 16 instead of 12"),
        ("--model {model} --root {data} --dataset boxes --split test", "no split 'test'"),
        ("--model {model} --root {data} --dataset boxes --suite robustness", "made in pixels"),
        ("--model {model} --images {pictures} --tokenizer {model}/model.safetensors", "tokenizer"),
        (
            "--model {model} --images {pictures} --tokenizer {tokenizer} --split test",
            "gives no split 'test', only train, validation",
        ),
        (
            "--model {model} --images {pictures} --tokenizer {tokenizer} --suite robustness"
            " --shifted.sketch {pictures} --shifted.sketch-classes {broken}",
            "no class map",
        ),
        (
            "--model {model} --images {pictures} --tokenizer {tokenizer} --suite robustness"
            " --shifted.sketch {pictures} --shifted.sketch-classes {nowhere}",
            "class 'cat' is none of the model's 2",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    argv: str,
    said: str,
    strange: dict[str, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [word.format(**strange) for word in argv.split()]
    try:
        code = main([*words, "--out", str(tmp_path / "out")])
    except SystemExit as ended:
        code = int(ended.code or 0)
    captured = capsys.readouterr()
    text = " ".join((caplog.text + captured.err + captured.out).replace("│", " ").split())
    assert code == 2
    assert said in text
    assert not (tmp_path / "out").exists()


def test_a_model_that_gives_no_classes_is_refused(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [*SMALL, *MTM_SMALL, "--recipe", "mtm-tiny", "--augment.overrides"]
    words += ["--data.root", str(world.root), "--data.dataset", DATASET]
    assert run(MtmRun, MTM_RECIPES, mtm_worker, settle, [*words, "--out", str(tmp_path / "m")]) == 0
    with caplog.at_level(logging.ERROR):
        assert (
            main(["--model", str(tmp_path / "m"), "--out", str(tmp_path / "o"), *tokens(world)])
            == 2
        )
    assert "holds the model of MtmRun" in caplog.text


def test_the_report_of_another_evaluation_is_not_written_over(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = ("--out", str(tmp_path / "out"))
    assert main(["--model", str(world.folder / "ids"), *out, *tokens(world)]) == 0
    before = (tmp_path / "out" / "report.json").read_bytes()
    assert main(["--model", str(world.folder / "vectors"), *out, *tokens(world)]) == 2
    assert "the report of another evaluation (other model)" in caplog.text
    assert (tmp_path / "out" / "report.json").read_bytes() == before
    assert main(["--model", str(world.folder / "ids"), *out, *tokens(world)]) == 0


def test_pictures_that_cannot_be_read_are_left_out(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    many = tmp_path / "many"
    for number in range(120):  # one unreadable picture of 121 is under the limit
        place = many / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(world.splits["train"][number % 28].path, place / f"{number}.png")
    (many / "class0" / "broken.png").write_bytes(b"no picture")
    argv = ["--model", str(world.folder / "ids"), "--out", str(tmp_path / "out")]
    argv += ["--images", str(many), "--tokenizer", str(world.tokenizer)]
    assert main([*argv, "--split", "train", "--validation-fraction", "0"]) == 0
    assert report(tmp_path / "out")["models"]["ids"]["rows"] == 120
    assert "broken.png" in caplog.text
