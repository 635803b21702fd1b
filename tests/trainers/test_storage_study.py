"""The storage study: its arms, jobs, table and chart; and what it refuses before any work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from services.errors import InvalidInputError
from services.pictures import list_pictures
from tests.trainers.classifiers import DATASET as WORLD
from tests.trainers.classifiers import World
from trainers.consistency import SCORES
from trainers.options import parse
from trainers.picture_config import PicturesConfig, PixelRun
from trainers.picture_streams import TRAIN, split_pictures
from trainers.picture_subsets import read_keys
from trainers.recipes.pixels import RECIPES
from trainers.storage_arms import (
    Arm,
    Place,
    StudyConfig,
    arms,
    kept,
    pixel_jobs,
    place_of,
    score_jobs,
    token_jobs,
    variant_jobs,
)
from trainers.storage_report import PAPER, Found, report
from trainers.storage_study import main
from trainers.sweep import open_data


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("study"))


def config_of(out: Path, **changes: Any) -> StudyConfig:
    return StudyConfig(out=out, seeds=2, **changes)


def placed(config: StudyConfig, world: World) -> tuple[Place, list[Any]]:
    place = place_of(config, world.pictures)
    return place, split_pictures(PicturesConfig(place.images))[1][TRAIN]


def scores(place: Place, training: list[Any]) -> None:
    """The later a picture stands, the more consistent it is."""
    place.scores.mkdir(parents=True)
    count = len(training)
    columns = {
        "key": [picture.key for picture in training],
        "consistency": [number // 2 / count for number in range(count)],
        "probability": [number / count for number in range(count)],
    }
    pq.write_table(pa.table(columns), place.scores / SCORES)


def test_every_job_is_a_command_that_its_program_takes(world: World, tmp_path: Path) -> None:
    config = config_of(tmp_path, options="--loop.epochs 3", pixel_options="--model.depth 1")
    place, training = placed(config, world)
    before = [
        *token_jobs(config, place), *variant_jobs(config, place),
        *score_jobs(config, place, training),
    ]  # fmt: skip
    names = [job.name for job in before]
    assert names[:3] == ["tokenizer", "ingest", "tokenadapt"]
    assert names.count("consistency") == 1
    assert sum(name.startswith("half-") for name in names) == 4
    scores(place, training)
    points = pixel_jobs(config, place, training)
    assert len(points) == 2 * 9
    assert len({job.name for job in [*before, *points]}) == len(before) + len(points)
    for job in [*before, *points]:
        assert set(job.needs) <= set(names)
        if job.module != "trainers.classify_pixels":
            continue
        run = parse(PixelRun, RECIPES, list(job.words))
        assert run.loop.epochs == 3
        assert run.model.depth == 1
        assert run.cluster.no_ray
        assert str(Path(run.out) / "model.safetensors") == str(job.outputs[0])


def test_halves_are_complementary_and_parts_hold_the_most_consistent(
    world: World, tmp_path: Path
) -> None:
    config = config_of(tmp_path, cscore=(0.5,), random=(0.5,))
    place, training = placed(config, world)
    list(score_jobs(config, place, training))
    everything = {picture.key for picture in training}
    for pair in range(2):
        halves = [set(read_keys(str(place.keys(f"half-{pair}{end}")))) for end in "ab"]
        assert halves[0] | halves[1] == everything
        assert not halves[0] & halves[1]
    for keep, last in (("consistent", True), ("inconsistent", False)):
        own_place = replace(place, out=tmp_path / keep)
        scores(own_place, training)
        pixel_jobs(replace(config, keep=keep), own_place, training)
        names = read_keys(str(tmp_path / keep / "keys" / "cscore-0.5-seed0.txt"))
        again = read_keys(str(tmp_path / keep / "keys" / "cscore-0.5-seed1.txt"))
        assert names == again
        for label in (0, 1):
            alike = [p.key for p in training if p.label == label]
            half = len(alike) // 2
            assert {k for k in names if k in alike} == set(alike[half:] if last else alike[:half])
    drawn = [read_keys(str(tmp_path / keep / "keys" / f"random-0.5-seed{s}.txt")) for s in (0, 1)]
    assert set(drawn[0]) != set(drawn[1])
    count, size = kept(config, place, Arm("random", 0.5), 0, training)
    own = [p for p in training if p.key in set(drawn[0])]
    assert (count, size) == (len(own), sum(p.path.stat().st_size for p in own))
    whole = kept(config, place, Arm("full", 1), 0, training)
    assert whole == (len(training), sum(p.path.stat().st_size for p in training))


def test_table_chart_and_json(world: World, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    found = [
        Found(arm, seed, 10, int(1000 * arm.value) + 1, 40, 7 * (arm.method == "seitpp"),
              top1=0.5 + 0.1 * seed, loss=1.0)
        for arm in arms(config)
        for seed in range(2)
    ]  # fmt: skip
    data = open_data(str(world.root), WORLD, None, "")
    text, files = report(config, data, found)
    assert "55.0 ± 5.0" in text
    assert "100.0%" in text
    assert "39%, 74.0" in text  # the paper's random sampling
    assert "7 + 40" in text  # SeiT++ pre-trains before
    stands = json.loads(files[0].read_text())
    assert len(stands["arms"]) == len(arms(config))
    assert str(world.folder) not in files[0].read_text()
    assert stands["paper"]["seitpp"][0] == list(PAPER["seitpp"][0])
    with Image.open(files[1]) as picture:
        assert picture.width > 800


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--random 1.5", "random is"),
        ("--jpeg 0", "jpeg is"),
        ("--tokens 0.5 0.5", "different shares"),
        ("--cscore-models 3", "an even number"),
        ("--pixels none", "pixels is 'none'"),
        ("--tokenadapt x", "given with the tokenizer"),
        ("--cluster.at-once 0", "cluster.at_once"),
        ("--options=--loop.epoks=3", "epoks"),
        ("--mtm-options=--loop.epochs=0", "loop.epochs"),
        ("--tokenizer none.safetensors", "none.safetensors"),
        ("--images none", "no folder"),
    ],
)
def test_what_makes_no_study_is_refused_and_nothing_is_written(
    words: str,
    said: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        code = main(["--out", str(tmp_path / "out"), *words.split()])
    except SystemExit as ended:
        code = int(ended.code or 0)
    captured = capsys.readouterr()
    text = " ".join((caplog.text + captured.err + captured.out).replace("│", " ").split())
    assert code == 2
    assert said in text
    assert not (tmp_path / "out").exists()


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images" / "class").mkdir(parents=True)
    with pytest.raises(InvalidInputError):
        list_pictures(tmp_path / "images")
    assert main(["--out", str(tmp_path / "out"), "--images", str(tmp_path / "images")]) == 2
    assert not (tmp_path / "out").exists()
