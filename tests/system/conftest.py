"""Real Ray clusters as separate processes, stopped by their process ids."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Head:
    """A running head node. environment: what a client of it needs."""

    dashboard: str
    environment: dict[str, str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """`ray start --head` in an environment where the project is not installed."""
    folder = tmp_path_factory.mktemp("cluster")
    environment = bare_environment(folder / "venv")
    found = subprocess.run(
        ["python", "-c", "import services"], env=environment, cwd=folder, capture_output=True
    )
    assert found.returncode != 0, "the project is importable without being installed"
    token = folder / "token"
    token.write_text("a" * 64)
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    # A short path: Ray's sockets live below it, and a socket's name has at most 107 bytes.
    scratch = Path(f"/tmp/seit-ray-{os.getpid()}")
    dashboard, port = free_port(), free_port()
    before = {p.pid for p in psutil.process_iter()}
    command = [
        *("ray", "start", "--head", "--node-ip-address", "127.0.0.2", "--port", str(port)),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
        *("--num-cpus", "3", "--object-store-memory", "200000000", "--disable-usage-stats"),
        *("--include-dashboard", "true", "--temp-dir", str(scratch)),
        # The default would be taken where another cluster runs on this machine.
        *("--dashboard-agent-listen-port", str(free_port())),
    ]
    started = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert started.returncode == 0, started.stdout + started.stderr
    try:
        head = Head(f"http://127.0.0.1:{dashboard}", environment)
        _wait_for_agent(head, folder)
        yield head
    finally:
        ours = [
            p
            for p in psutil.process_iter(["cmdline"])
            if p.pid not in before and str(scratch) in " ".join(p.info["cmdline"] or [])
        ]
        for process in ours:
            _signal(process, signal.SIGTERM)
        _, alive = psutil.wait_procs(ours, timeout=15)
        for process in alive:
            _signal(process, signal.SIGKILL)
        shutil.rmtree(scratch, ignore_errors=True)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _wait_for_agent(head: Head, folder: Path) -> None:
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
