"""The studies to their end, on a real Ray cluster and tiny pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainers.classifiers import DATASET, MTM_SMALL, SMALL, World

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(3600)]

_COMMON = " ".join(SMALL).replace("--cluster.no-ray", "").replace("--augment.crop 4", "")
_SHORT = "--loop.epochs 2 --loop.validate-every 1"
_TOKENS = f"{_COMMON} --augment.crop 4 {_SHORT}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("studies"))
    made.tokenadapt()
    return made


def run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RAY_ADDRESS": "local", "SEIT_CACHE_DIR": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, "-m", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1700,
    )


def test_storage_study(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [
        *("services.cli", "storage-study", "--out", str(out), "--images", str(world.pictures)),
        *("--seeds", "1", "--random", "0.5", "--cscore", "0.5", "--jpeg", "5"),
        *("--resolution", "0.5", "--tokens", "1.0", "--cscore-models", "2"),
        *("--tokenizer", str(world.tokenizer)),
        f"--options={_COMMON.replace('--loop.epochs 4', '')} {_SHORT}",
        "--token-options=--augment.crop 4",
        "--pixel-options=--model.image-size 16 --model.crop 16 --model.patch 4",
        f"--mtm-options={_TOKENS} {' '.join(MTM_SMALL)}",
        f"--tokenadapt-options={_SHORT} --optim.warmup-epochs 0",
    ]
    first = run(*words, folder=tmp_path)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-6000:]
    found = json.loads((out / "storage_study.json").read_text())
    assert [arm["method"] for arm in found["arms"]] == [
        *("full", "random", "cscore", "jpeg", "resolution", "seit", "seitpp")
    ]
    notes = {path: path.stat().st_mtime_ns for path in (out / "jobs").iterdir()}
    again = run(*words, folder=tmp_path)
    assert again.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "jobs").iterdir()} == notes
    assert json.loads((out / "storage_study.json").read_text())["arms"] == found["arms"]


def test_loss_curves(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = run(
        *("trainers.loss_curves", "--out", str(out), "--root", str(world.root), "--seeds", "1"),
        *("--dataset", DATASET, "--tokenadapt", str(world.folder / "tokenadapt.safetensors")),
        *("--share", "0.5", f"--classify-options={_TOKENS}"),
        f"--mtm-options={_TOKENS} {' '.join(MTM_SMALL)}",
        folder=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr[-6000:]
    assert "loss_curves.png" in ended.stderr + ended.stdout
    found = json.loads((out / "loss_curves.json").read_text())
    assert set(found["losses"]) == {"SeiT", "SeiT++"}
    assert (out / "loss_curves.png").stat().st_size > 10_000


def test_tokenadapt_efficiency(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = run(
        *("trainers.tokenadapt_efficiency", "--out", str(out), "--images", str(world.pictures)),
        *("--tokenizer", str(world.tokenizer), "--root", str(world.root), "--dataset", DATASET),
        *("--counts", "5", "--seeds", "1", f"--classify-options={_TOKENS}"),
        f"--options={_SHORT} --optim.warmup-epochs 0",
        folder=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr[-6000:]
    assert "tokenadapt_efficiency.png" in ended.stderr + ended.stdout
    lines = json.loads((out / "tokenadapt_efficiency.json").read_text())["lines"]
    assert [line["pictures"] for line in lines] == [0, 5, len(world.splits["train"]) + 4]
    assert len((out / "keys" / "5-seed0.txt").read_text().splitlines()) == 5
    assert (out / "tokenadapt_efficiency.png").stat().st_size > 10_000
