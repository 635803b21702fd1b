"""`ray job submit` against `ray start --head`, where the project is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from services.shards.store import open_store
from services.tokens.codebook import Codebook
from services.wire.seit import v1 as wire
from tests.small_datasets import write_dataset
from tests.system.clusters import Cluster
from tests.system.conftest import ROOT
from trainers.checkpoint import load_export

pytestmark = [pytest.mark.system, pytest.mark.timeout(420)]


def tiny_dataset(folder: Path) -> None:
    spec = wire.TokenSpec(
        grid_height=8, grid_width=8, codes=32, channels=8, image_height=32, image_width=32
    )
    codebook = Codebook(torch.randn(32, 8, generator=torch.Generator().manual_seed(0)))
    root = open_store(str(folder))
    write_dataset(root, "tiny", rows=48, shards=2, spec=spec, codebook=codebook.to_bytes())


SHORT = ("--loop.epochs", "2", "--optim.warmup-epochs", "0", "--loop.log-every", "1")


def test_a_submitted_job_trains_from_its_working_directory_alone(
    head: Cluster, tmp_path: Path
) -> None:
    tiny_dataset(tmp_path / "data")
    out = tmp_path / "run"
    command = [
        *("ray", "job", "submit", "--address", head.dashboard, "--working-dir", str(ROOT), "--"),
        *("python", "trainers/mtm.py", "--recipe", "mtm-tiny", "--out", str(out)),
        *("--data.root", str(tmp_path / "data"), "--data.dataset", "tiny"),
        *SHORT,
    ]
    ended = subprocess.run(
        command, env=head.environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    assert "succeeded" in ended.stdout
    tensors, about = load_export(str(out))
    assert tensors
    assert '"kind": "MtmRun"' in about["config"]


def test_a_plain_command_with_relative_paths_trains_on_a_local_ray_and_resumes(
    tmp_path: Path,
) -> None:
    """Ray moves its workers to folders of their own: paths must mean what the user typed."""
    tiny_dataset(tmp_path / "data")
    command = [
        *(sys.executable, str(ROOT / "trainers" / "classify.py"), "--recipe", "scratch-tiny"),
        *("--data.root", "data", "--data.dataset", "tiny", "--out", "runs/one", *SHORT),
    ]
    environment = {**os.environ, "RAY_ADDRESS": "local", "SEIT_CACHE_DIR": str(tmp_path / "cache")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *words],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
        )

    first = run()
    assert first.returncode == 0, first.stdout[-4000:] + first.stderr[-4000:]
    assert load_export(str(tmp_path / "runs" / "one"))[0]
    # Another run in the same folder is refused; one without its data leaves nothing behind.
    other = run("--loop.seed", "7")
    assert other.returncode == 2
    assert "holds another run: loop.seed is 0 there, 7 here" in other.stderr
    missing = run("--data.dataset", "none", "--out", "runs/two")
    assert missing.returncode == 2
    assert "no dataset 'none'" in missing.stderr
    assert not (tmp_path / "runs" / "two").exists()
