"""The release as its user gets it: built, installed away from the sources, run; and its parts."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from services.shards.store import open_store
from tests.small_datasets import write_dataset

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def build(sources: Path, out: Path, kind: str) -> Path:
    """The wheel or sdist of a folder of sources, by the backend that pyproject.toml names."""
    program = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=sources, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and sdist of what git knows, built in a copy."""
    folder = tmp_path_factory.mktemp("release")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, tracked.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / "tree" / name)
    return build(folder / "tree", folder, "wheel"), build(folder / "tree", folder, "sdist")


def names_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_runs_where_the_sources_are_not(
    release: tuple[Path, Path], tmp_path: Path
) -> None:
    wheel, _ = release
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    install = ["install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
    # The dependencies are those of this environment: .pth files, by which an editable install
    # makes the sources importable, are not read from a folder of PYTHONPATH.
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(dependencies), "COLUMNS": "200"}

    def run(*words: str) -> str:
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    seit = str(python.parent / "seit")
    where = run(str(python), "-c", "import services, trainers; print(services.__file__)")
    assert where.startswith(str(tmp_path / "env"))
    write_dataset(open_store(str(tmp_path / "data")))
    assert "digits" in run(seit, "inspect", "data", "digits")
    assert "5,000 rows" in run(seit, "simulate", "--rows", "5000", "--nodes", "1", "--gpus", "1")
    assert "--recipe" in run(str(python), "-m", "trainers.mtm", "--help")


def test_wheel_and_sdist_hold_the_same_package(release: tuple[Path, Path], tmp_path: Path) -> None:
    wheel, sdist = release
    assert VERSION in wheel.name
    assert VERSION in sdist.name
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (sources,) = tmp_path.iterdir()
    assert names_of(build(sources, tmp_path, "wheel")) == names_of(wheel)
    assert (sources / "LICENSE").is_file()
    pages = {p.relative_to(ROOT).as_posix() for p in (ROOT / "services/stats/pages").glob("*.*")}
    assert pages <= names_of(wheel)
    assert not {name for name in names_of(wheel) if name.startswith(("tests/", "deploy/"))}


def test_the_changelog_begins_with_this_version() -> None:
    found = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert found is not None
    assert found[1] == VERSION


def sbom() -> Any:
    spec = importlib.util.spec_from_file_location("deploy_sbom", ROOT / "deploy/sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_parts_list_names_every_part_of_the_image(tmp_path: Path) -> None:
    program = [sys.executable, ROOT / "deploy/sbom.py", tmp_path]
    subprocess.run(program, check=True, capture_output=True)
    listed = json.loads((tmp_path / "sbom.cdx.json").read_text())
    assert (listed["bomFormat"], listed["specVersion"]) == ("CycloneDX", "1.6")
    assert listed["metadata"]["component"]["version"] == VERSION
    lock = (ROOT / "deploy/image.lock").read_text()
    pins = re.findall(r"^([a-z0-9.-]+)==(\S+)", lock, re.MULTILINE)
    assert [(part["name"], part["version"]) for part in listed["components"]] == pins
    hashes = [
        digest["content"]
        for part in listed["components"]
        for place in part["externalReferences"]
        for digest in place["hashes"]
    ]
    assert hashes == re.findall(r"--hash=sha256:([0-9a-f]{64})", lock)
    assert {"torch", "ray"} <= {p["name"] for p in listed["components"] if p.get("licenses")}
    licences = (tmp_path / "licences.md").read_text()
    assert all(f"{name} {version}" in licences for name, version in pins)


def test_a_line_that_pins_nothing_is_no_lock() -> None:
    with pytest.raises(ValueError, match="not a pinned requirement"):
        list(sbom().pinned("torch>=2\n"))
