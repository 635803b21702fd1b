"""Joining Ray where the one that ran here, or the one that is named, does not answer any more."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT

from tests.system.clusters import free_port

pytestmark = pytest.mark.system

_JOBS = """
from services.stream.jobs import jobs_at
with jobs_at("") as jobs:
    print(len(jobs.states()))
"""

_JOIN = """
import logging
logging.basicConfig(level=logging.INFO)
from services.stream.cluster import connect
connect()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of Ray's files; short, as names of sockets lie below it."""
    made = Path(tempfile.mkdtemp(prefix="seit-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def join(
    folder: Path, program: str = _JOIN, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A program that joins, or gives up, well before Ray by itself would have given up."""
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**inherited, "RAY_TMPDIR": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_ray_that_was_killed_is_not_waited_for(folder: Path) -> None:
    gone = f"127.0.0.1:{free_port()}"
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text(gone)
    ended = join(folder)
    assert ended.returncode == 0, ended.stderr
    assert f"the Ray that ran here at {gone} was killed" in ended.stderr
    assert "joined Ray at" in ended.stderr


def test_a_named_cluster_that_does_not_answer_is_named(folder: Path) -> None:
    gone = f"127.0.0.1:{free_port()}"
    ended = join(folder, RAY_ADDRESS=gone)
    assert ended.returncode == 1
    assert f"NotFoundError: no Ray answers at '{gone}'" in ended.stderr


def test_a_second_ray_of_a_machine_is_not_started_for_jobs_that_it_could_not_take(
    folder: Path,
) -> None:
    """Of the second Ray only the port is used here: whoever listens there stands in its way."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # a Ray that runs beside the tests holds it already
            other.bind(("127.0.0.1", DEFAULT_DASHBOARD_AGENT_LISTEN_PORT))
            other.listen()
        ended = join(folder, _JOBS)
    assert ended.returncode == 1
    assert "CapacityError: another Ray of this machine holds port" in ended.stderr
    assert not list(folder.glob("ray/session*"))
