"""Real Ray clusters as separate processes, stopped by their process ids."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from services.augment.recipe import RECIPES
from services.augment.tokenadapt import TokenAdapt, TokenAdaptConfig
from services.plan.epoch import OrderSpec
from services.shards.store import open_store
from services.stream.loader import Stream
from services.stream.request import RowsRequest, StreamRequest
from services.stream.sources import pinned
from services.tokens.codebook import Codebook
from services.wire.seit import v1 as wire
from tests.small_datasets import write_dataset
from tests.system.clusters import Cluster, cluster
from tests.system.jobs import STEPS
from tests.system.stream_job import digest

ROOT = Path(__file__).resolve().parents[2]


def bare_environment(folder: Path) -> dict[str, str]:
    """A Python with this project's dependencies but without the project itself.

    A fresh environment whose PYTHONPATH is our site-packages: `.pth` files, by which an editable
    install makes the project importable, are not read from there.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = Path(next(p for p in sys.path if p.endswith("site-packages")))
    shutil.copy2(Path(sys.executable).parent / "ray", folder / "bin" / "ray")
    text = (folder / "bin" / "ray").read_text().splitlines()
    (folder / "bin" / "ray").write_text("\n".join([f"#!{folder}/bin/python", *text[1:]]))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment["PATH"] = f"{folder}/bin:{environment['PATH']}"
    environment["PYTHONPATH"] = str(site)
    return environment


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """`ray start --head` in an environment where the project is not installed."""
    folder = tmp_path_factory.mktemp("cluster")
    environment = bare_environment(folder / "venv")
    found = subprocess.run(
        ["python", "-c", "import services"], env=environment, cwd=folder, capture_output=True
    )
    assert found.returncode != 0, "the project is importable without being installed"
    with cluster(folder, environment, 3, "head", "--include-dashboard", "true") as made:
        wait_for_agent(made, folder)
        yield made


def wait_for_agent(head: Cluster, folder: Path) -> None:
    """`ray start` returns before the node's agent can take a job: ask until it does."""
    command = ["ray", "job", "submit", "--address", head.dashboard, "--", "true"]
    end = time.monotonic() + 90
    while True:
        asked = subprocess.run(
            command, env=head.environment, cwd=folder, capture_output=True, text=True, timeout=90
        )
        if asked.returncode == 0:
            return
        assert time.monotonic() < end, asked.stdout + asked.stderr


SPEC = wire.TokenSpec(
    grid_height=16, grid_width=16, codes=64, channels=8, image_height=64, image_width=64
)


@pytest.fixture(scope="session")
def token_stream(tmp_path_factory: pytest.TempPathFactory) -> StreamRequest:
    """MTM's recipe with TokenAdapt on 7,000 rows: a step of 96 takes 150 ms of a slow core."""
    folder = tmp_path_factory.mktemp("chaos")
    root = open_store(str(folder / "data"))
    codebook = Codebook(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)))
    write_dataset(root, "small", rows=700, shards=10, spec=SPEC, codebook=codebook.to_bytes())
    config = TokenAdaptConfig(
        grid=(16, 16), out_grid=(12, 12), channels=8, codes=64, dim=16, heads=1, mlp=32, dim_head=16
    )
    torch.manual_seed(1)
    (folder / "tokenadapt.safetensors").write_bytes(TokenAdapt(config).to_bytes())
    rows = RowsRequest(
        sources=(pinned(root, "small", "train"),),
        order=OrderSpec(seed=3, global_batch_rows=96, block_rows=12, lanes=2, window_shards=4),
        cache_dir=str(folder / "cache"),
        cache_bytes=10**8,
    )
    recipe = RECIPES["mtm"](SPEC, (12, 12))
    return StreamRequest(rows, recipe, str(folder / "tokenadapt.safetensors"))


@pytest.fixture(scope="session")
def undisturbed(token_stream: StreamRequest) -> list[str]:
    """The digest of each step's batch."""
    torch.set_num_threads(1)  # as an actor with less than a core does
    return [digest(batch) for batch in Stream(token_stream, stop=STEPS)]


@pytest.fixture
def ray_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A head that only carries the driver and fetch tasks, and two nodes for the actors."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with cluster(tmp_path, environment, 1, "chaos", "--include-dashboard", "false") as made:
        made.start("127.0.0.3", 2, "--address", made.address)
        yield made
