"""Sweeps: what is compared with what, and that a sweep that was stopped ends as if it had not."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainers.classifiers import DATASET, MTM_SMALL, SMALL, World
from trainers import ablation, storage_sweep
from trainers.program import INTERRUPTED
from trainers.sweep import Point, Setting, Sweep
from trainers.sweep_main import main
from trainers.sweep_report import Claim, estimate

_COMMON = " ".join(
    word for word in SMALL if word != "--cluster.no-ray"
)  # which a sweep gives itself


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("sweep")
    made = World(folder)
    made.tokenadapt()
    return made


@pytest.fixture(autouse=True)
def _cache(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEIT_CACHE_DIR", str(world.folder / "cache"))


def ablate(world: World, out: Path, *words: str) -> int:
    given_words = [
        *("--out", str(out), "--root", str(world.root), "--dataset", DATASET),
        *("--tokenadapt", str(world.folder / "tokenadapt.safetensors"), "--seeds", "2"),
        f"--mtm-options={_COMMON} {' '.join(MTM_SMALL)} --loop.epochs 1 --loop.validate-every 1",
        f"--classify-options={_COMMON} --loop.epochs 1 --loop.validate-every 1",
    ]
    return main(
        ablation.AblationConfig,
        ablation.settings,
        ablation.report,
        "",
        [*given_words, *words],
    )


def figures(out: Path) -> list[Any]:
    """What was measured, without times."""
    found = json.loads((out / "ablation.json").read_text())["settings"]
    for setting in found:
        for point in setting["points"]:
            del point["seconds"]
    return list(found)


def test_a_sweep_that_was_stopped_ends_as_if_it_had_not(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert ablate(world, tmp_path / "whole") == 0
    whole = figures(tmp_path / "whole")
    assert len(whole) == 8
    assert all(len(setting["points"]) == 2 for setting in whole)
    # Points that differ in ColorAdapt alone share their pre-training.
    runs = sorted(path.name for path in (tmp_path / "whole" / "runs").iterdir())
    assert sum(name.startswith("mtm-") for name in runs) == 4
    assert sum(name.startswith("classify-") for name in runs) == 16

    train, done = Sweep._train, 0

    def stop_later(self: Sweep, *how: Any) -> None:
        nonlocal done
        done += 1
        if done == 9:
            raise KeyboardInterrupt
        train(self, *how)

    monkeypatch.setattr(Sweep, "_train", stop_later)
    assert ablate(world, tmp_path / "cut") == INTERRUPTED
    assert not (tmp_path / "cut" / "ablation.json").exists()
    points = {path: path.read_bytes() for path in (tmp_path / "cut" / "points").iterdir()}
    assert len(points) == 6
    assert ablate(world, tmp_path / "cut") == 0
    assert figures(tmp_path / "cut") == whole
    for path, content in points.items():
        assert path.read_bytes() == content  # none was computed again
    assert (tmp_path / "cut" / "ablation.png").stat().st_size > 5_000
    trained = done
    assert ablate(world, tmp_path / "cut") == 0
    assert done == trained

    before = {path: path.read_bytes() for path in tmp_path.glob("cut/points/*")}
    assert ablate(world, tmp_path / "cut", "--coloradapt", "0.5") == 2
    assert "was computed by other commands" in caplog.text
    assert {path: path.read_bytes() for path in tmp_path.glob("cut/points/*")} == before


def test_storage_asks_for_parts_of_the_rows_and_shares_the_whole_with_the_ablation(
    world: World,
) -> None:
    config = storage_sweep.StorageConfig(
        out=world.folder / "s", root=str(world.root), dataset=DATASET,
        tokenadapt=str(world.folder / "tokenadapt.safetensors"), shares=(0.5, 1.0),
    )  # fmt: skip
    from trainers.sweep import open_data

    data = open_data(str(world.root), DATASET, None, config.tokenadapt)
    settings = storage_sweep.settings(config, data)
    assert [setting.rows for setting in settings] == [data.rows] * 4 + [data.rows // 2] * 4
    sweep = Sweep(config, data, {})
    for setting in settings:
        for command in sweep.commands(setting, 3):
            text = " ".join(command)
            part = f"--rows {setting.rows} --data.subset-seed 3"
            assert (part in text) == (setting.rows < data.rows)
            assert ("--augment.tokenadapt" in text) == setting.tokenadapt
            assert "--loop.seed 3" in text
    whole = ablation.AblationConfig(
        out=config.out, root=config.root, dataset=DATASET, tokenadapt=config.tokenadapt
    )
    for kind in (whole, replace(whole, share=0.5)):  # an ablation may be of a part, too
        shared = set(ablation.settings(kind, data)) & set(settings)
        assert len(shared) == 4
        assert {setting.rows for setting in shared} == {data.part(kind.share)}
        other = Sweep(kind, data, {})
        for setting in shared:
            assert other.commands(setting, 1) == sweep.commands(setting, 1)


@pytest.mark.parametrize("shares", ["0", "1.5", "0.5 0.5", "nan", "0.01"])
def test_shares_that_leave_nothing_to_compare_are_refused(
    shares: str, world: World, tmp_path: Path
) -> None:
    words = ["--out", str(tmp_path / "o"), "--root", str(world.root), "--dataset", DATASET]
    words += ["--tokenadapt", str(world.folder / "tokenadapt.safetensors")]
    of_all = storage_sweep.StorageConfig, storage_sweep.settings, storage_sweep.report, ""
    of_one = ablation.AblationConfig, ablation.settings, ablation.report, ""
    for sweep, flag in ((of_all, "--shares"), (of_one, "--share")):
        try:
            code = main(*sweep, [*words, flag, *shares.split()])  # type: ignore[arg-type]
        except SystemExit as ended:
            code = int(ended.code or 0)
        assert code == 2
        assert not (tmp_path / "o").exists()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_a_mean_has_its_standard_error(values: list[float]) -> None:
    found = estimate(values)
    assert found.mean == pytest.approx(np.mean(values))
    if len(values) == 1:
        assert math.isnan(found.error)
        assert "±" not in str(found)
    else:
        wanted = np.std(values, ddof=1) / np.sqrt(len(values))
        assert found.error == pytest.approx(wanted, abs=1e-12)


def test_a_difference_counts_only_past_the_noise_of_its_seeds() -> None:
    better, worse = (Setting(False, on, False, 10) for on in (True, False))

    def judged(first: list[float], second: list[float]) -> str:
        results = {
            setting: [Point(top1=v, top5=1.0, loss=0.0, seconds=1.0) for v in values]
            for setting, values in ((better, first), (worse, second))
        }
        return Claim("", better, worse).judge(results)[1]

    # Seeds vary more than settings differ, but each seed agrees: pairing shows it.
    assert judged([0.32, 0.52, 0.73], [0.30, 0.50, 0.70]) == "holds"
    assert judged([0.30, 0.50, 0.70], [0.32, 0.52, 0.73]) == "does not hold"
    assert judged([0.30, 0.50, 0.70], [0.31, 0.48, 0.70]) == "within the noise"
    # By Student's t three seeds ask for 4.3 standard errors, five for 2.8: here it is 2.6 and 3.1.
    assert judged([0.51, 0.52, 0.54], [0.50, 0.50, 0.50]) == "within the noise"
    assert judged([0.51, 0.51, 0.51, 0.52, 0.54], [0.50] * 5) == "holds"
    assert judged([0.9], [0.1]) == "open"  # one seed says nothing
    assert judged([0.5, 0.5], [0.5, 0.5]) == "within the noise"
