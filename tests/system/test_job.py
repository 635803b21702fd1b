"""`ray job submit` against `ray start --head`, where the project is not installed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from services.shards.store import open_store
from services.tokens.codebook import Codebook
from services.wire.seit import v1 as wire
from tests.small_datasets import write_dataset
from tests.system.conftest import ROOT, Head
from trainers.checkpoint import load_export

pytestmark = [pytest.mark.system, pytest.mark.timeout(420)]


def test_a_submitted_job_trains_from_its_working_directory_alone(
    head: Head, tmp_path: Path
) -> None:
    spec = wire.TokenSpec(
        grid_height=8, grid_width=8, codes=32, channels=8, image_height=32, image_width=32
    )
    codebook = Codebook(torch.randn(32, 8, generator=torch.Generator().manual_seed(0)))
    root = open_store(str(tmp_path / "data"))
    write_dataset(root, "tiny", rows=48, shards=2, spec=spec, codebook=codebook.to_bytes())
    out = tmp_path / "run"
    command = [
        *("ray", "job", "submit", "--address", head.dashboard, "--working-dir", str(ROOT), "--"),
        *("python", "trainers/mtm.py", "--recipe", "mtm-tiny", "--out", str(out)),
        *("--data.root", str(tmp_path / "data"), "--data.dataset", "tiny"),
        *("--loop.epochs", "2", "--optim.warmup-epochs", "0", "--loop.log-every", "1"),
    ]
    ended = subprocess.run(
        command, env=head.environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    assert "succeeded" in ended.stdout
    tensors, about = load_export(str(out))
    assert tensors
    assert '"kind": "MtmRun"' in about["config"]
