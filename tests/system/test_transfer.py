"""Fine-grained datasets as they ship, from their folder to a classifier that was transferred."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from services.stream.ingest import IngestConfig, ingest
from tests.test_layouts import cars, flowers, inaturalist
from tests.trainers.classifiers import SMALL, World
from trainers import evaluate
from trainers.command import run
from trainers.config import ClassifyRun
from trainers.figures import read_curve
from trainers.recipes.classify import RECIPES
from trainers.step import classify_worker, prepare_classify

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]

SIZES = {"flowers": (5, 2, 3), "cars": (4, 2, 2), "inat18": (4, 2, 2), "inat19": (4, 2, 2)}
"""Pictures to train on and to validate on, and classes."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("transfer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEIT_CACHE_DIR", str(folder / "cache"))
        patch.setenv("RAY_ADDRESS", "local")
        made = World(folder)
        made.train("source", "--recipe", "finetune-tiny", "--augment.overrides")
        flowers(folder / "flowers")
        cars(folder / "cars")
        inaturalist(folder / "inat18", 2018)
        inaturalist(folder / "inat19", 2019)
        yield made
    ray.shutdown()


@pytest.mark.parametrize("name", list(SIZES))
def test_from_the_shipped_folder_to_a_transferred_classifier(
    name: str, world: World, tmp_path: Path
) -> None:
    images = world.folder / name
    training, validation, classes = SIZES[name]
    made = ingest(
        IngestConfig(
            images=str(images),
            root=str(tmp_path / "data"),
            dataset=name,
            tokenizer=str(world.tokenizer),
            actors=1,
            cpus=0.5,
        )
    )
    splits = {s.name: sum(shard.rows for shard in s.shards) for s in made.committed.manifest.splits}
    assert splits == {"train": training, "validation": validation}
    out = tmp_path / "run"
    words = [
        *("--recipe", "transfer", "--data.root", str(tmp_path / "data"), "--data.dataset", name),
        *("--model.init", str(world.folder / "source"), "--out", str(out), *SMALL),
        *("--cluster.workers", "1", "--cluster.gpus-per-worker", "0"),
        *("--order.window-shards", "1", "--loop.precision", "float32"),
    ]
    assert run(ClassifyRun, RECIPES, classify_worker, prepare_classify, words) == 0
    top1 = read_curve(out, "validation_top1")[1][-1]
    argv = ["--model", str(out), "--images", str(images), "--tokenizer", str(world.tokenizer)]
    assert evaluate.main([*argv, "--out", str(tmp_path / "eval")]) == 0
    found = json.loads((tmp_path / "eval" / "report.json").read_text())["models"]["run"]
    assert found["rows"] == validation
    assert len(found["classes"]) == classes
    assert found["top1"] == pytest.approx(top1)
