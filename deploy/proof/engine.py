"""A container engine for the proof: the one that runs, or one started here, and a Debian base."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BASE = "seit-base:bookworm"
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_START_SECONDS = 30.0
_MIRROR = "http://deb.debian.org/debian"


class ProofError(Exception):
    """The proof could not be made, or failed; the message says at what."""


@dataclass(frozen=True)
class Engine:
    """environment: with DOCKER_HOST. compose: the command that reads compose files."""

    environment: dict[str, str]
    compose: tuple[str, ...]

    def run(self, *words: str, seconds: float = 900, quiet: bool = True) -> str:
        """Standard output of a command. ProofError with its last lines if it fails."""
        out = subprocess.PIPE if quiet else None
        try:
            done = subprocess.run(
                words, env=self.environment, stdout=out, stderr=subprocess.STDOUT, text=True,
                timeout=seconds,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ProofError(f"{' '.join(words)[:200]} did not end in {seconds:g} s") from error
        if done.returncode:
            said = (done.stdout or "")[-6000:]
            raise ProofError(f"{' '.join(words)[:200]} ended with {done.returncode}:\n{said}")
        return done.stdout or ""


@contextmanager
def engine(scratch: Path) -> Iterator[Engine]:
    """The engine that answers; else dockerd, started here with its data below `scratch`.

    Raises: ProofError naming what is missing.
    """
    if shutil.which("docker") is None:
        raise ProofError("there is no docker: install it (Debian: docker.io, docker-compose)")
    environment = dict(os.environ)
    compose = _compose(environment)
    if _answers(environment):
        yield Engine(environment, compose)
        return
    daemon = shutil.which("dockerd")
    if daemon is None or os.geteuid() != 0:
        raise ProofError(
            "no container engine answers, and none can be started: that takes dockerd and root"
        )
    folder = scratch / "dockerd"
    folder.mkdir(parents=True, exist_ok=True)
    socket = f"unix://{folder}/docker.sock"
    environment["DOCKER_HOST"] = socket
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(
            [daemon, "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec"),
             "--pidfile", str(folder / "pid"), "-H", socket],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        end = time.monotonic() + _START_SECONDS
        while not _answers(environment):
            if running.poll() is not None or time.monotonic() > end:
                said = (folder / "log").read_text(errors="replace")[-3000:]
                raise ProofError(f"dockerd did not start:\n{said}")
            time.sleep(0.2)
        yield Engine(environment, compose)
    finally:
        running.terminate()
        running.wait(timeout=60)


def _answers(environment: dict[str, str]) -> bool:
    asked = ["docker", "version", "--format", "{{.Server.Version}}"]
    return subprocess.run(asked, env=environment, capture_output=True).returncode == 0


def _compose(environment: dict[str, str]) -> tuple[str, ...]:
    for words in (("docker", "compose"), ("docker-compose",)):
        if shutil.which(words[0]) is None:
            continue
        if subprocess.run([*words, "version"], env=environment, capture_output=True).returncode:
            continue
        return words
    raise ProofError("there is no compose: install docker-compose, or docker's compose plugin")


def make_base(docker: Engine, scratch: Path) -> None:
    """BASE, from Debian's packages, with the certificates that this machine trusts."""
    if docker.run("docker", "images", "-q", BASE).strip():
        return
    if shutil.which("debootstrap") is None:
        raise ProofError("there is no debootstrap: install it, or name an image with --base")
    root = scratch / "base"
    shutil.rmtree(root, ignore_errors=True)
    docker.run(
        "debootstrap", "--variant=minbase",
        "--include=python3,python3-venv,ca-certificates,openssh-client,rsync",
        "bookworm", str(root), _MIRROR,
    )  # fmt: skip
    shutil.copyfile(_CERTIFICATES, f"{root}{_CERTIFICATES}")
    archive = scratch / "base.tar"
    docker.run("tar", "-C", str(root), "-cf", str(archive), ".")
    docker.run("docker", "import", str(archive), BASE)
    archive.unlink()
    shutil.rmtree(root)


def build(docker: Engine, dockerfile: Path, name: str, arguments: Sequence[str]) -> None:
    """An image from the repository's root; its output goes to the terminal."""
    sys.stderr.flush()
    certificates = f"PIP_CERT={_CERTIFICATES}"
    options = [
        word for argument in (*arguments, certificates) for word in ("--build-arg", argument)
    ]
    docker.run(
        "docker", "build", "--network=host", "-q", "-f", str(dockerfile), *options, "-t", name,
        str(Path(__file__).resolve().parents[2]), seconds=3600,
    )  # fmt: skip
