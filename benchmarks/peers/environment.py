"""An environment with the peers' packages, whose pins contradict this project's.

It sees this environment's packages behind its own, so torch, the largest, is the same for all.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

PACKAGES = ("mosaicml-streaming", "litdata", "webdataset")
_VERSIONS = (
    "import importlib.metadata as m, json, sys;"
    "print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
)


def python_of(folder: Path) -> Path:
    """The interpreter of the environment in `folder`, which is made if it does not stand."""
    python = folder / "bin" / "python"
    ready = folder / ".installed"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        site = subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        Path(site, "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run(
            [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *PACKAGES],
            check=True,
        )
        ready.touch()
    return python


def versions(python: Path) -> dict[str, str]:
    """Versions of the peers' packages, and of what they share with this project."""
    command = [str(python), "-c", _VERSIONS, *PACKAGES, "torch", "numpy"]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    said: dict[str, str] = json.loads(found.stdout)
    return said
