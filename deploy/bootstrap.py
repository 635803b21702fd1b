"""Make .venv and install what requirements.lock pins. Needs the standard library alone.

uv installs, in less than half of pip's time; pip brings uv, and takes over where uv cannot: a
mirror of packages that only pip's own configuration names, say.

Debian ships Python without `ensurepip`; where that is so the package python3-venv is installed if
this user may, else named.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
STAMP = ENVIRONMENT / ".installed"


def fail(message: str) -> None:
    sys.stderr.write(f"bootstrap: {message}\n")
    sys.exit(2)


def have_ensurepip() -> bool:
    probe = [sys.executable, "-c", "import ensurepip, venv"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def install_ensurepip() -> None:
    """Debian's package for it, if this user may install; a clear end otherwise."""
    package = f"python3.{sys.version_info.minor}-venv"
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        fail(
            f"this Python has no ensurepip, so it cannot make an environment: install it"
            f" (Debian: apt-get install {package}) and run the command again"
        )
    subprocess.run([str(apt), "update", "-q"], check=False)
    subprocess.run([str(apt), "install", "-q", "-y", package], check=False)
    if not have_ensurepip():
        fail(f"could not install {package}; install it by hand and run the command again")


def run(command: list[str]) -> bool:
    return subprocess.run(command, check=False).returncode == 0


def pin_of(package: str) -> str:
    """A package's lines of the lock: its version, and a line for each hash."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith(f"{package}=="))
    last = next(at for at in range(first, len(lines)) if not lines[at].endswith("\\"))
    return "\n".join(lines[first : last + 1])


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - run by whatever Python a machine has
        fail(
            f"Python {sys.version.split()[0]} is too old: 3.11 or newer is needed;"
            " name one with make PYTHON=python3.11"
        )
    if not have_ensurepip():
        install_ensurepip()
    python = ENVIRONMENT / "bin" / "python"
    probe = [str(python), "-m", "pip", "--version"]  # an interrupted start leaves no pip
    if not python.exists() or subprocess.run(probe, capture_output=True, check=False).returncode:
        venv.EnvBuilder(with_pip=True, clear=True).create(ENVIRONMENT)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    uv = [str(ENVIRONMENT / "bin" / "uv"), "pip", "install", "--python", str(python)]
    if sys.dont_write_bytecode:  # each process, and each of Ray's, would compile torch
        uv.append("--compile-bytecode")
    pinned = ["--require-hashes", "-r", str(ROOT / "requirements.lock")]
    with tempfile.NamedTemporaryFile("w", suffix=".lock") as only_uv:
        only_uv.write(pin_of("uv"))
        only_uv.flush()
        done = run([*pip, "--quiet", "--require-hashes", "-r", only_uv.name])
    if not (done and run([*uv, "--system-certs", *pinned])):
        sys.stderr.write("bootstrap: uv could not install it, see above; pip tries instead\n")
        done = run([*pip, *pinned])
    if not (done and run([*pip, "--no-deps", "--no-build-isolation", "-e", str(ROOT)])):
        fail("an install step failed; its output is above. Run the command again to continue")
    STAMP.touch()


if __name__ == "__main__":
    main()
