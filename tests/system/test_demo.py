"""The demo's chain at its smallest size: every program, real Ray, real files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from services.shards.manifest import load_manifest
from services.shards.store import open_store
from services.shards.verify import verify_dataset
from tests.until import until
from trainers.checkpoint import checkpoint_steps

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of pictures of several sizes: stripes that differ in their direction."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("across", "down", "both")):
        (folder / name).mkdir()
        for number in range(40):
            height, width = rng.integers(20, 60, 2)
            y, x = np.mgrid[:height, :width]
            wave = np.sin((y * (label != 1) + x * (label != 0)) * 0.6 + rng.uniform(0, 6))
            noisy = 127 + 100 * wave[..., None] + rng.normal(0, 10, (height, width, 3))
            picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
            picture.save(folder / name / f"{number}.jpg")
    return folder


def demo(out: Path, images: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.cli", "demo", "--out", str(out)]
    command += ["--images", str(images), "--seeds", "1", "--quick"]
    return subprocess.run(command, capture_output=True, text=True, timeout=800)


def test_the_chain_runs_leaves_its_files_and_skips_what_is_done(
    images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "demo"
    first = demo(out, images)
    assert first.returncode == 0, first.stdout[-4000:] + first.stderr[-4000:]
    assert "from pictures to a trained token model" in first.stdout + first.stderr

    root = open_store(str(out / "data"))
    loaded = load_manifest(root, "demo")
    rows = {s.name: sum(shard.rows for shard in s.shards) for s in loaded.manifest.splits}
    assert rows == {"train": 96, "validation": 24}
    assert loaded.manifest.classes == ["across", "both", "down"]
    assert all(check.failure is None for check in verify_dataset(root, "demo"))
    for name in ("augmentations", "curves", "storage"):
        with Image.open(out / "gallery" / f"{name}.png") as picture:
            assert min(picture.size) > 200
    for run in ("tokenizer", "tokenadapt", "mtm", "finetune-0", "scratch-0"):
        assert (out / run / "model.safetensors").stat().st_size > 0
        assert list((out / run / "tensorboard").glob("events*"))
    operations = json.loads((out / "tokenadapt" / "report.json").read_text())["operations"]
    assert {"hflip", "affine", "crop"} <= set(operations)

    # What is done is skipped, without a cluster; its picture is drawn again.
    (out / "gallery" / "curves.png").unlink()
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    again = demo(out, images)
    assert again.returncode == 0, again.stdout[-4000:] + again.stderr[-4000:]
    assert (out / "gallery" / "curves.png").exists()
    assert (again.stdout + again.stderr).count("done before, in") == 7
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")} == before


def test_sigterm_waits_for_the_step_s_checkpoint_and_takes_down_the_cluster(
    images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "services.cli", "demo", "--out", str(out)]
    command += ["--images", str(images), "--seeds", "1"]
    record = out / "tokenizer" / "metrics.jsonl"

    def figures() -> bool:
        return record.exists() and record.stat().st_size > 0

    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "RAY_ADDRESS": "local"},
    ) as program:
        try:
            until(lambda: program.poll() is not None or figures(), "figures", 300)
            assert program.poll() is None, program.communicate()[0]
            cluster = {child.pid: child for child in psutil.Process(program.pid).children(True)}
            assert any("gcs_server" in child.name() for child in cluster.values())
            program.send_signal(signal.SIGTERM)
            said = program.communicate(timeout=120)[0]
        finally:
            program.kill()
    assert program.returncode == 143, said
    assert "Traceback" not in said
    assert "SIGTERM: passing it on to the step that runs and ending" in said
    assert "is saved in" in said
    assert said.endswith("interrupted; the same command goes on from here\n")
    assert checkpoint_steps(str(out / "tokenizer"))
    assert json.loads((out / "steps" / "tokenizer.json").read_text())["seconds"] is None
    assert not psutil.wait_procs(cluster.values(), timeout=60)[1]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "missing", "no folder"),
        (lambda folder: (folder / "empty").mkdir() or folder, "holds no picture"),
    ],
)
def test_bad_pictures_end_with_code_2_before_anything_starts(
    make: object, says: str, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    target = make(folder)  # type: ignore[operator]
    ended = demo(tmp_path / "demo", target)
    assert ended.returncode == 2
    assert says in " ".join((ended.stdout + ended.stderr).split())
    assert not (tmp_path / "demo" / "data").exists()
