"""ImageNet-R, Sketch and ObjectNet laid out as they ship, before a model of ImageNet's classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps

from tests.trainers.classifiers import World
from tests.trainers.test_objectnet import KNOWN
from tests.trainers.test_objectnet import write as write_objectnet
from trainers.checkpoint import export, load_export
from trainers.evaluate import main

FIRST, SECOND = 3, 999  # places among the thousand of the two classes that the model can tell


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A trained classifier of two classes, and the same as a model of ImageNet's thousand."""
    folder = tmp_path_factory.mktemp("shifted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEIT_CACHE_DIR", str(folder / "cache"))
        made = World(folder)
        run = made.train("two", "--recipe", "scratch-tiny", "--augment.overrides")
    tensors, about = load_export(str(run))
    wide = {name: tensors[name] for name in tensors}
    for name in ("head.weight", "head.bias"):
        wide[name] = torch.zeros(1000, *tensors[name].shape[1:])
        wide[name][[FIRST, SECOND]] = tensors[name]
    wide["head.bias"][[n for n in range(1000) if n not in (FIRST, SECOND)]] = -1e3
    (folder / "imagenet").mkdir()
    export(str(folder / "imagenet"), wide, {**about, "classes": json.dumps(KNOWN)})
    _lay_out(made)
    return made


def _lay_out(world: World) -> None:
    """Pictures of the two classes, in the three layouts, and plain ones as ImageNet's val/."""
    for number, place in enumerate((FIRST, SECOND)):
        source = world.pictures / f"class{number}"
        for name in ("val", "imagenet-r", "imagenet-sketch/sketch"):
            shutil.copytree(source, world.folder / name / KNOWN[place])
    (world.folder / "imagenet-r" / "README.txt").write_text("n00000003 a box above\n")
    # Further classes of the model that no picture of ImageNet-R shows: they may not be answered.
    objectnet = write_objectnet(world.folder / "objectnet-1.0")
    for number, folder in enumerate(("alarm_clock", "chair", "air_freshener")):
        place = objectnet / "images" / folder
        place.mkdir(exist_ok=True)
        for file in (world.pictures / f"class{number % 2}").iterdir():
            with Image.open(file) as picture:  # in its red frame
                ImageOps.expand(picture, 2, (255, 0, 0)).save(place / file.name)


def evaluated(world: World, out: Path, *words: str) -> dict[str, Any]:
    argv = ["--model", str(world.folder / "imagenet"), "--out", str(out)]
    argv += ["--images", str(world.folder / "val"), "--tokenizer", str(world.tokenizer)]
    argv += ["--split", "train", "--validation-fraction", "0", "--suite", "robustness", *words]
    assert main(argv) == 0
    found = json.loads((out / "report.json").read_text())["conditions"]
    return {each["kind"]: each["models"]["imagenet"] for each in found}


def test_all_three_are_read_as_they_ship(world: World, tmp_path: Path) -> None:
    found = evaluated(
        world,
        tmp_path / "out",
        *("--shifted.imagenet-r", str(world.folder / "imagenet-r")),
        *("--shifted.sketch", str(world.folder / "imagenet-sketch" / "sketch")),
        *("--shifted.objectnet", str(world.folder / "objectnet-1.0")),
    )
    clean = found["clean"]
    assert clean["rows"] == 40
    # The pictures are the same, so the figures are, whatever they are called.
    for kind in ("imagenet_r", "sketch", "objectnet"):
        assert found[kind]["rows"] == 40  # the air fresheners are none of ImageNet's classes
        assert found[kind]["top1"] == pytest.approx(clean["top1"])
    named = {entry["class"]: entry["rows"] for entry in found["objectnet"]["classes"]}
    assert named == {"air_freshener": 0, "alarm_clock": 20, "chair": 20}
    assert (tmp_path / "out" / "robustness.png").stat().st_size > 10_000


def test_a_layout_that_does_not_fit_is_refused_before_any_work(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    argv = ["--images", str(world.pictures), "--tokenizer", str(world.tokenizer)]
    argv += ["--validation-fraction", "0.3", "--suite", "robustness"]
    two = ["--model", str(world.folder / "two"), "--out", str(tmp_path / "out")]
    objectnet = str(world.folder / "objectnet-1.0")
    assert main([*two, *argv, "--shifted.objectnet", objectnet]) == 2
    assert "the model has 2 classes" in caplog.text
    assert main([*two, *argv, "--shifted.sketch", str(world.folder / "val")]) == 2
    assert "is none of the model's 2" in caplog.text
    assert not (tmp_path / "out").exists()
