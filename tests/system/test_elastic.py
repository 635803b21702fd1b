"""Ray Train's workers die, leave and return: the run's losses stay those of an undisturbed one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from services.stream.request import StreamRequest
from tests.deploy.test_kubernetes import RAY
from tests.system.clusters import Cluster, cluster
from tests.system.conftest import ROOT
from tests.system.jobs import started
from tests.until import until
from trainers.checkpoint import checkpoint_steps

pytestmark = [pytest.mark.system, pytest.mark.timeout(720)]

BEFORE_A_POD_ENDS: list[str] = RAY["RayCluster seit"]["spec"]["workerGroupSpecs"][0]["template"][
    "spec"
]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]

EPOCH = 73
"""Steps of 96 of the dataset's 7,000 rows."""


def command(source: StreamRequest, out: Path, epochs: int, *words: str) -> list[str]:
    data = source.rows.sources[0]
    return [
        *(sys.executable, str(ROOT / "trainers" / "classify.py"), "--recipe", "scratch-tiny"),
        *("--data.root", data.root, "--data.dataset", data.dataset, "--out", str(out)),
        *("--loop.epochs", str(epochs), "--optim.warmup-epochs", "0", "--loop.log-every", "1"),
        *("--loop.checkpoint-every", "5", "--loop.validate-every", "100", "--augment.crop", "12"),
        *("--order.global-batch", "96", "--order.block", "8", "--order.lanes", "2"),
        *("--augment.overrides", "adapt.share", "0"),
        # What is dropped hangs on how many workers there are; data and their draws do not.
        *("--model.dropout", "0", "--model.drop-path", "0"),
        *words,
    ]


def losses(out: Path) -> dict[int, float]:
    """Loss of each step that stands in the record; each is there once."""
    file = out / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
    found = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert len(found) == len(dict(found)), "a step was recorded twice"
    return dict(found)


def steps_done(out: Path) -> int:
    file = out / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def undisturbed_losses(
    source: StreamRequest, out: Path, epochs: int, *order: str
) -> dict[int, float]:
    words = command(source, out, epochs, "--cluster.no-ray", *order)
    subprocess.run(words, check=True, timeout=300)
    found = losses(out)
    assert sorted(found) == list(range(1, EPOCH * epochs + 1))
    return found


@pytest.fixture(scope="module")
def one_epoch(
    token_stream: StreamRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, float]:
    """Losses of an epoch that nothing disturbed."""
    return undisturbed_losses(token_stream, tmp_path_factory.mktemp("elastic") / "alone", 1)


@pytest.fixture
def head(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A head with as many CPUs as the test asks for."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with cluster(
        tmp_path, environment, request.param, "train", "--include-dashboard", "false"
    ) as made:
        yield made


@pytest.mark.slow  # with its whole node a worker is killed below
@pytest.mark.parametrize("head", [3], indirect=True)
def test_a_killed_worker_goes_on_from_its_checkpoint_with_the_same_losses(
    head: Cluster, token_stream: StreamRequest, one_epoch: dict[int, float], tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    with started(head, command(token_stream, out, 1), log) as process:
        until(lambda: steps_done(out) >= 20, "20 steps", 240)
        victim: psutil.Process = head.workers("RayTrainWorker")[0]
        victim.send_signal(signal.SIGKILL)
        assert process.wait(240) == 0, log.read_text()[-4000:]
    assert losses(out) == one_epoch


@pytest.mark.parametrize("head", [0], indirect=True)
def test_what_a_node_computes_until_it_is_taken_back_is_kept(
    head: Cluster, token_stream: StreamRequest, one_epoch: dict[int, float], tmp_path: Path
) -> None:
    """Ray is told before, as by our pods, and no other checkpoint would be made. The stream dries
    up then: such a node is given no fetch tasks and actors any more.
    """
    out, log = tmp_path / "run", tmp_path / "log"
    nodes = ("127.0.0.3", "127.0.0.4")
    for ip in nodes:
        head.start(ip, 3, "--address", head.address)
    words = command(token_stream, out, 1, "--loop.checkpoint-every", "100000")
    with started(head, words, log) as process:
        until(lambda: steps_done(out) >= 10, "10 steps", 240)
        trainer = head.workers("RayTrainWorker")[0]
        (leaving,) = (ip for ip in nodes if trainer.ppid() in {p.pid for p in head.nodes[ip]})
        with head.leaving(leaving, BEFORE_A_POD_ENDS):
            until(lambda: checkpoint_steps(str(out)), "checkpoint", 60)
            done, saved = steps_done(out), checkpoint_steps(str(out))[-1]
            head.kill(leaving)
        assert process.wait(300) == 0, log.read_text()[-4000:]
    (other,) = set(nodes) - {leaving}
    with head.leaving(other, BEFORE_A_POD_ENDS) as hook:
        assert hook.wait(60) == 0  # not all of its 110 seconds, where nothing is trained any more
    said = log.read_text()
    assert "a node of this run leaves: a checkpoint at every reading until then" in said
    (begun,) = {int(step) for step in re.findall(r"goes on from step (\d+)", said)}
    assert saved <= begun
    assert done <= begun + 1  # not a step was lost but one that was being saved
    assert losses(out) == one_epoch


@pytest.mark.slow  # three groups of workers, one after the other
@pytest.mark.parametrize("head", [2], indirect=True)
@pytest.mark.parametrize(
    ("workers", "order"),
    [(2, ()), (3, ("--order.block", "32", "--order.lanes", "3"))],
    ids=["2, 1, 2", "3, 2 who share three blocks unequally, 3"],
)
def test_workers_leave_and_return(
    head: Cluster,
    token_stream: StreamRequest,
    tmp_path: Path,
    workers: int,
    order: tuple[str, ...],
) -> None:
    """A worker on each node, one fewer when a node dies, then all again on a node that joins."""
    made, out, log = head, tmp_path / "run", tmp_path / "log"
    for number in range(1, workers):
        made.start(f"127.0.0.{2 + number}", 2, "--address", made.address)
    words = command(
        *(token_stream, out, 3, "--cluster.workers", str(workers), *order),
        *("--cluster.min-workers", str(workers - 1)),
        *("--cluster.cpus-per-worker", "1.5", "--cluster.augment-cpus-per-actor", "0.25"),
        *("--cluster.fetch-tasks", "1"),
    )

    def worlds() -> int:
        """Workers of the group that is at work, as its streams tell."""
        told = json.loads((out / "streams" / "rank-0.json").read_text())
        return int(told.get("workers", 0))

    with started(made, words, log) as process:
        until(lambda: steps_done(out) >= 30, "30 steps", 180)
        assert worlds() == workers
        made.kill("127.0.0.3")
        until(lambda: worlds() == workers - 1, "a group of one fewer", 120)
        made.start("127.0.0.9", 2, "--address", made.address)
        assert process.wait(300) == 0, log.read_text()[-4000:]
    found = losses(out)
    expected = undisturbed_losses(token_stream, tmp_path / "alone", 3, *order)
    assert found.keys() == expected.keys()
    for step, loss in expected.items():
        assert found[step] == pytest.approx(loss, rel=1e-3), step
