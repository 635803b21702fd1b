"""Work in a process of its own: what comes back, what is raised, and that it ends."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import fsspec
import psutil
import pytest
from fastapi.testclient import TestClient
from s3fs import S3FileSystem

from services.errors import NotFoundError, StoreError
from services.settings import load_settings
from services.shards.store import Store, open_store
from services.stats.apart import Apart, Here, work_on
from services.stats.app import create_app
from services.stats.facts import facts_of, load_facts
from services.stats.standing import list_all
from tests.small_datasets import write_dataset

ROOT = Path(__file__).resolve().parents[2]


def own_id(root: Store) -> int:
    return os.getpid()


def fail(root: Store) -> None:
    raise ValueError("a defect")


def sleep(root: Store, seconds: float, begun: Path) -> None:
    begun.touch()
    time.sleep(seconds)


@pytest.fixture
def apart(root: Store) -> Iterator[Apart]:
    apart = Apart(root)
    yield apart
    apart.close()


def test_the_same_comes_back_from_another_process(root: Store, apart: Apart) -> None:
    loaded = write_dataset(root)
    found = apart(load_facts, "digits", 1)
    here = facts_of(loaded)
    assert (found.about, found.summary, found.storage) == (here.about, here.summary, here.storage)
    shards = [shard for split in loaded.manifest.splits for shard in split.shards]
    assert [found.shards.at(place) for place in range(len(found.shards))] == shards
    stands = apart(list_all, 2)
    assert stands == Here(root)(list_all, 2)
    assert {name: list(versions) for name, versions in stands.items()} == {"digits": [1]}
    other = apart(own_id)
    assert other != os.getpid() == Here(root)(own_id)
    with pytest.raises(NotFoundError, match="no version 7"):
        apart(load_facts, "digits", 7)
    with pytest.raises(RuntimeError, match="ValueError: a defect"):
        apart(fail)
    assert apart(own_id) == other, "errors end no process"
    apart.close()
    assert not psutil.pid_exists(other)


def test_a_process_that_is_killed_is_told_and_started_again(apart: Apart, tmp_path: Path) -> None:
    victim = apart(own_id)
    told: list[str] = []
    begun = tmp_path / "begun"

    def ask() -> None:
        try:
            apart(sleep, 600, begun)
        except StoreError as error:
            told.append(str(error))

    asking = Thread(target=ask)
    asking.start()
    while not begun.exists():
        time.sleep(0.01)
    os.kill(victim, signal.SIGKILL)
    asking.join(30)
    assert len(told) == 1
    assert "ask again" in told[0]
    assert apart(own_id) not in (victim, os.getpid())


def test_a_question_that_a_dead_process_did_not_hear_is_answered_by_the_next(apart: Apart) -> None:
    for _ in range(5):
        victim = psutil.Process(apart(own_id))
        victim.kill()
        psutil.wait_procs([victim], timeout=10)
        assert apart(own_id) not in (victim.pid, os.getpid())


def test_it_ends_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    program = (
        "import time; from services.shards.store import open_store; from services.stats.apart"
        " import Apart; from tests.stats.test_apart import own_id\n"
        "if __name__ == '__main__':\n"
        f"    print(Apart(open_store({str(tmp_path)!r}))(own_id), flush=True); time.sleep(600)\n"
    )
    file = tmp_path / "program.py"
    file.write_text(program)
    parent = subprocess.Popen(
        [sys.executable, str(file)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait(30)
    parent.stdout.close()
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running()


def test_only_what_another_process_can_reach_is_read_there(root: Store) -> None:
    assert isinstance(work_on(root), Here)
    assert isinstance(work_on(open_store("memory://here")), Here)
    assert isinstance(work_on(open_store("s3://bucket/datasets")), Apart)


def test_the_service_answers_from_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    S3FileSystem.clear_instance_cache()  # it would remember another test's endpoint
    try:
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("stats")
        root = open_store("s3://stats/datasets")
        write_dataset(root, sole_writer=True)
        settings = load_settings({"SEIT_STATS_FRESH_SECONDS": "0"})
        with TestClient(create_app(root, settings, [])) as client:
            assert client.get("/v1/datasets/digits").json()["version"] == 1
            write_dataset(root, seed=1, sole_writer=True)
            assert client.get("/v1/datasets/digits").json()["version"] == 2
            assert client.get("/v1/datasets/digits?version=9").status_code == 404
            children = psutil.Process().children(recursive=True)
            assert any("spawn_main" in " ".join(one.cmdline()) for one in children)
    finally:
        server.stop()
