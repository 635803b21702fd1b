"""Held-out consistency: who judges whom, and the file of scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from services.errors import FormatError
from services.pictures import read_picture
from tests.trainers.picture_runs import place, write_pictures
from tests.trainers.test_pixel_step import run_of
from trainers.consistency import SCORES, ConsistencyConfig, main, measure, read_scores
from trainers.picture_streams import TRAIN, split_pictures
from trainers.picture_subsets import at_random, stratified, write_keys
from trainers.pixel_step import centre, load_pixel_classifier, pixel_worker
from trainers.views import unit_range

HALVES = ("0a", "0b", "1a", "1b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and four classifiers on two pairs of complementary halves."""
    made = tmp_path_factory.mktemp("consistency")
    images = write_pictures(made / "images", 40)
    whole = run_of(made / "whole", images, 1)
    training = split_pictures(whole.pictures)[1][TRAIN]
    for name in HALVES:
        half = stratified(training, 0.5, at_random(int(name[0]), "half"))
        if name[1] == "b":
            half = [picture for picture in training if picture not in half]
        keys = write_keys(made / f"{name}.txt", half)
        run = replace(whole, out=str(made / name))
        pixel_worker(replace(run, pictures=replace(run.pictures, keys=str(keys))), place())
    pixel_worker(whole, place())
    return made


def models(folder: Path, *names: str) -> list[str]:
    return [str(folder / name) for name in names]


def test_every_picture_is_judged_by_those_that_did_not_see_it(folder: Path, tmp_path: Path) -> None:
    assert main(["--model", *models(folder, *HALVES), "--out", str(tmp_path), "--batch", "7"]) == 0
    table = pq.read_table(tmp_path / SCORES).to_pydict()
    assert set(table["models"]) == {2}
    scores = read_scores(str(tmp_path / SCORES))
    training = split_pictures(run_of(folder, folder / "images", 1).pictures)[1][TRAIN]
    assert set(scores) == {picture.key for picture in training}
    seen = {name: (folder / f"{name}.txt").read_text().splitlines() for name in HALVES}
    for picture in training[:6]:
        pixels = torch.from_numpy(read_picture(picture.path, 16, 16))[None]
        given = []
        for name in HALVES:
            if picture.key in seen[name]:
                continue
            model, run, _ = load_pixel_classifier(str(folder / name), torch.device("cpu"))
            with torch.inference_mode():
                logits = model(centre(unit_range(pixels), run.model.crop))
            given.append(logits.softmax(1)[0])
        right = np.mean([float(g.argmax() == picture.label) for g in given])
        probability = np.mean([float(g[picture.label]) for g in given])
        assert scores[picture.key] == pytest.approx((right, probability), abs=1e-5)
    assert (tmp_path / "consistency.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("0a", "1a"), "were trained on by all 2 models"),
        (("0a", "whole"), "each of a part of it"),
        (("0a", "none"), "there is no exported model"),
    ],
)
def test_models_that_judge_nothing_are_refused(
    names: tuple[str, ...], said: str, folder: Path, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    assert main(["--model", *models(folder, *names), "--out", str(out)]) == 2
    assert said in caplog.text
    assert not out.exists()


def test_scores_say_nothing_of_the_batch_size(folder: Path, tmp_path: Path) -> None:
    found = [
        measure(ConsistencyConfig(tuple(models(folder, *HALVES)), tmp_path, batch))[1]
        for batch in (3, 64)
    ]
    assert np.array_equal(found[0].right, found[1].right)
    assert np.allclose(found[0].probability, found[1].probability, atol=1e-5)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scores").write_bytes(b"no parquet")
    with pytest.raises(FormatError, match="holds no scores"):
        read_scores(str(tmp_path / "scores"))
