"""Ray clusters of several nodes on one machine: on 127.0.0.2 and up, stopped by process id."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from peers.job import Job
from peers.process import BENCHMARKS, end

_CPUS = 2
_STORE_BYTES = 300_000_000
_SECONDS = 300
# A node that does not answer is given up after three seconds, as the documented clusters do.
_HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _environment(folder: Path, variables: dict[str, str]) -> dict[str, str]:
    token = folder / "token"
    token.write_text("b" * 64)
    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(
            [str(BENCHMARKS), str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")]
        ).strip(os.pathsep),
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, **own, **variables}


@dataclass(frozen=True)
class Cluster:
    """A running cluster. environment: of whoever joins it. folder: short, gone with the cluster."""

    address: str
    environment: dict[str, str]
    folder: Path

    def drive(self, module: str, job: Job, count: int) -> dict[str, Any]:
        """Run `python -m MODULE` as a driver on the first node, and return what it reports."""
        order, result = self.folder / "drive.json", self.folder / "drive-result.json"
        job.dump(order)
        command = [sys.executable, "-W", "ignore", "-m", module, self.address]
        done = subprocess.run(
            [*command, str(order), str(count), str(result)],
            cwd=BENCHMARKS,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        if done.returncode:
            raise RuntimeError(f"{module} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        told: dict[str, Any] = json.loads(result.read_text())
        return told


@contextmanager
def cluster(folder: Path, count: int, variables: dict[str, str]) -> Iterator[Cluster]:
    """A cluster of `count` nodes; each works in FOLDER/node-N, which stands for its own disk.

    variables: of the environment of all nodes, by which they find storage.
    """
    folder.mkdir(parents=True)
    environment = _environment(folder, variables)
    # Sockets lie below it, and the name of a socket has at most 107 bytes.
    scratch = Path(tempfile.mkdtemp(prefix="seit-", dir="/tmp"))
    port = _free_port()
    address = f"{_host(0)}:{port}"
    try:
        for number in range(count):
            first = ["--head", "--port", str(port), "--include-dashboard", "false"]
            here = folder / f"node-{number}"
            here.mkdir()
            command = [
                *("ray", "start", *(["--address", address] if number else first)),
                *("--node-ip-address", _host(number), "--num-cpus", str(_CPUS)),
                *("--object-store-memory", str(_STORE_BYTES), "--disable-usage-stats"),
                *("--dashboard-agent-listen-port", str(_free_port())),
                *("--resources", json.dumps({f"node-{number}": 1})),
                *([] if number else ["--temp-dir", str(scratch)]),
                *([] if number else ["--system-config", json.dumps(_HEALTH)]),
            ]
            started = subprocess.run(
                command, env=environment, cwd=here, capture_output=True, text=True, timeout=_SECONDS
            )
            if started.returncode:
                said = started.stdout + started.stderr
                raise RuntimeError(f"node {_host(number)} did not start:\n{said}")
        yield Cluster(address, environment, scratch)
    finally:
        end(processes_of(scratch))
        shutil.rmtree(scratch, ignore_errors=True)


def _host(number: int) -> str:
    return f"127.0.0.{number + 2}"


def kill_node(scratch: Path, number: int) -> None:
    """End a node as a power failure would: all of its processes at once."""
    host = _host(number)
    for process in processes_of(scratch, f"node_ip_address={host}", f"node-ip-address={host}"):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def processes_of(scratch: Path, *words: str) -> list[psutil.Process]:
    """Ray's processes carry the folder of their session in their command line, and their children.

    words: of which their command line holds one, where some are given.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            line = " ".join(process.cmdline())
            inside = f"{scratch}/" in line or line.endswith(str(scratch))
            if inside and (not words or any(word in line for word in words)):
                found.append(process)
                found += process.children(recursive=True)
    return list({process.pid: process for process in found}.values())
