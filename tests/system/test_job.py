"""`ray job submit` against `ray start --head`, where the project is not installed; what the stats
service tells of it, and when the head is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from services.settings import load_settings
from services.shards.store import open_store
from services.stats.app import create_app
from services.stats.streams import open_runs
from services.tokens.codebook import Codebook
from services.wire.seit import v1 as wire
from tests.small_datasets import write_dataset
from tests.small_runs import write_run
from tests.system.clusters import Cluster
from tests.system.conftest import ROOT
from tests.until import until
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


@pytest.mark.slow  # plain commands run in test_demo.py, and resume in trainers/test_signals.py
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


# As a trainer's: named by --out, with an actor, until it is told to stop.
PROGRAM = """
import pathlib, sys, time
import ray

class Augmenter:
    def ready(self):
        return True

ray.init()
actor = ray.remote(num_cpus=0.1)(Augmenter).remote()
assert ray.get(actor.ready.remote())
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.1)
"""


@pytest.fixture
def client(head: Cluster, tmp_path: Path) -> Iterator[TestClient]:
    write_run(tmp_path / "runs/mtm")
    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    environment = {
        "SEIT_STATS_RAY": head.dashboard,
        "RAY_AUTH_TOKEN": token,
        "SEIT_STATS_FRESH_SECONDS": "0.2",
    }
    (tmp_path / "data").mkdir()
    root, runs = open_store(str(tmp_path / "data")), open_runs([str(tmp_path / "runs")])
    with TestClient(create_app(root, load_settings(environment), runs)) as client:
        yield client


def submit(head: Cluster, folder: Path, *words: str) -> None:
    ended = subprocess.run(
        ["ray", "job", "submit", "--address", head.dashboard, "--no-wait", "--", *words],
        env=head.environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_jobs_are_told_while_the_cluster_stands_and_then_that_it_does_not(
    head: Cluster, client: TestClient, tmp_path: Path
) -> None:
    (tmp_path / "mtm.py").write_text(PROGRAM)
    stop, out = tmp_path / "stop", tmp_path / "runs/mtm"
    program = ("python", str(tmp_path / "mtm.py"), str(stop))
    submit(head, tmp_path, *program, "--secret", "hunter2", "--out", str(out))

    def job(state: str) -> Mapping[str, Any] | None:
        found = client.get("/v1/jobs").json()
        assert found["cluster"]["state"] == "reachable", found
        named = (one for one in found["jobs"] if one["run"] == "mtm" and one["state"] == state)
        return next(named, None)

    until(lambda: (job("RUNNING") or {}).get("actors"), "running job with an actor", 90)
    running = job("RUNNING")
    assert running is not None
    assert (running["program"], running["actors"], running["ended"]) == ("mtm.py", 1, "")
    assert client.get("/v1/streams/mtm").json()["actors"] == 1
    assert client.get("/v1/streams").json()["streams"][0]["actors"] == 1
    one = client.get(f"/v1/jobs/{running['id']}")
    assert one.json()["run"] == "mtm"
    assert "hunter2" not in one.text
    cluster = client.get("/v1/jobs").json()["cluster"]
    assert (cluster["nodes_alive"], cluster["cpus"]) == (1, 3)
    shown = client.get("/metrics").text
    assert 'seit_service_up{part="cluster"} 1.0' in shown
    assert 'seit_cluster_nodes{state="alive"} 1.0' in shown

    stop.touch()
    until(lambda: job("SUCCEEDED"), "finished job")
    assert until(lambda: job("SUCCEEDED"), "finished job")["ended"]

    head.kill("127.0.0.2")  # so this is the last test of this file
    gone = until(
        lambda: (one := client.get("/v1/jobs").json())["cluster"]["state"] == "unreachable" and one,
        "word that the cluster is gone",
    )
    assert gone["cluster"]["reason"]
    assert gone["jobs"] == []
    stream = client.get("/v1/streams/mtm").json()
    assert (stream["name"], stream["actors"]) == ("mtm", None), "streams are told without it"
    assert client.get("/readyz").json() == {"status": "ready", "cluster": "unreachable"}
    assert 'seit_service_up{part="cluster"} 0.0' in client.get("/metrics").text
