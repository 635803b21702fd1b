"""Ray clusters of several nodes on this machine, each node a group of real processes.

Nodes stand on 127.0.0.2, .3 and so on, below one folder for Ray's files, and are stopped by the
ids of their processes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

# A node that does not answer is declared dead after about three seconds instead of fifteen.
_QUICK = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Cluster:
    """address: of the head. dashboard: its HTTP address. environment: what clients need."""

    address: str
    dashboard: str
    environment: dict[str, str]
    scratch: Path
    nodes: dict[str, list[psutil.Process]] = field(default_factory=dict)

    def start(self, ip: str, cpus: int, *options: str) -> None:
        """One node more."""
        command = [
            *("ray", "start", "--node-ip-address", ip, "--num-cpus", str(cpus)),
            *("--object-store-memory", "200000000", "--disable-usage-stats"),
            # The default would be taken where another cluster runs on this machine.
            *("--dashboard-agent-listen-port", str(free_port()), *options),
        ]
        started = subprocess.run(
            command, env=self.environment, cwd="/", capture_output=True, text=True, timeout=120
        )
        self.nodes[ip] = [p for p in self._ours() if ip in _title(p)]
        assert started.returncode == 0, started.stdout + started.stderr

    def kill(self, ip: str) -> None:
        """End a node as a power failure would: all of its processes at once, by SIGKILL.

        Its workers are children of its raylet, started after it; they go with it.
        """
        doomed = {p.pid: p for p in self.nodes.pop(ip)}
        for process in list(doomed.values()):
            try:
                doomed |= {child.pid: child for child in process.children(recursive=True)}
            except psutil.NoSuchProcess:
                continue
        _end(list(doomed.values()), signal.SIGKILL)

    @contextmanager
    def leaving(self, ip: str, hook: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
        """Meanwhile a command runs by which a node tells Ray that it is to go.

        hook: asks `ray` for "this node", of which there are several here: `ray` is told which.
        """
        environment = {**self.environment, "RAY_ADDRESS": self.address}
        ask = "import ray; ray.init(); print(*(n['NodeManagerAddress'] + '=' + n['NodeID']"
        told = subprocess.run(
            [sys.executable, "-c", f"{ask} for n in ray.nodes() if n['Alive']))"],
            env=environment,
            cwd="/",
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout
        nodes = dict(word.split("=") for word in told.split() if word.startswith("127."))
        folder = self.scratch / f"ray-of-{ip}"
        folder.mkdir()
        real = shutil.which("ray", path=environment["PATH"])
        (folder / "ray").write_text(f'#!/bin/sh\nexec {real} "$@" --node-id {nodes[ip]}\n')
        (folder / "ray").chmod(0o755)
        environment["PATH"] = f"{folder}:{environment['PATH']}"
        with subprocess.Popen(hook, env=environment, cwd="/", start_new_session=True) as process:
            try:
                yield process
                assert process.poll() in (None, 0), "the command failed"
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def workers(self, title: str) -> list[psutil.Process]:
        """Ray's worker processes at work on what carries this title, oldest first."""
        found = [p for p in self._ours() if title in _title(p)]
        return sorted(found, key=lambda p: p.create_time())

    def _ours(self) -> list[psutil.Process]:
        """All processes below Ray's folder: raylets and workers name it in their arguments, and
        the server of Ray's client the head's address.

        A worker at work has changed its title, but its raylet is its parent.
        """
        marks = str(self.scratch), f"--address={self.address}"
        named = [p for p in psutil.process_iter() if any(mark in _title(p) for mark in marks)]
        everyone = {p.pid: p for p in named}
        for process in named:
            try:
                everyone |= {child.pid: child for child in process.children(recursive=True)}
            except psutil.NoSuchProcess:
                continue
        return list(everyone.values())

    def stop(self) -> None:
        """End all nodes."""
        _end(self._ours(), signal.SIGTERM)
        _end(self._ours(), signal.SIGKILL)
        shutil.rmtree(self.scratch, ignore_errors=True)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return ""


def _end(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=5)


@contextmanager
def cluster(
    folder: Path,
    environment: dict[str, str],
    cpus: int,
    name: str = "ray",
    *options: str,
    port: int | None = None,
) -> Iterator[Cluster]:
    """A head node with `cpus`, and what is started besides, until the context ends.

    port: of the head; a free one if it does not have to be known before.
    environment: `ray` stands first on its PATH. Clients take it as the cluster completes it.
    """
    token = folder / "token"
    token.write_text("a" * 64)
    port, dashboard = port or free_port(), free_port()
    # A short path: Ray's sockets live below it, and a socket's name has at most 107 bytes.
    made = Cluster(
        address=f"127.0.0.2:{port}",
        dashboard=f"http://127.0.0.1:{dashboard}",
        environment={
            **{k: v for k, v in environment.items() if not k.startswith("RAY_")},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
        },
        scratch=Path(f"/tmp/seit-{name}-{os.getpid()}"),
    )
    try:
        made.start(
            *("127.0.0.2", cpus, "--head", "--port", str(port)),
            *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
            *("--temp-dir", str(made.scratch), "--system-config", json.dumps(_QUICK), *options),
        )
        yield made
    finally:
        made.stop()
