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
from collections.abc import Iterable
from importlib import metadata
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def closure(wheel: Path) -> dict[str, Distribution]:
    """What a wheel requires of the distributions here, and what those require; no more."""
    (info,) = metadata.distributions(path=[str(wheel)])
    found: dict[str, Distribution] = {}
    waiting = [Requirement(text) for text in info.requires or ()]
    extras: dict[str, set[str]] = {}
    while waiting:
        asked = waiting.pop()
        if asked.marker and not asked.marker.evaluate({"extra": ""}):
            continue
        name = canonicalize_name(asked.name)
        wanted = {"", *asked.extras} - extras.get(name, set())
        if not wanted:
            continue
        extras.setdefault(name, set()).update(wanted)
        found[name] = metadata.distribution(name)
        for text in found[name].requires or ():
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in wanted):
                inner.marker = None
                waiting.append(inner)
    return found


def fresh_environment(folder: Path, parts: Iterable[Distribution]) -> Path:
    """A new environment's Python. It has `parts`, linked from the environment of the tests."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    for part in parts:
        for top in {file.parts[0] for file in part.files or ()} - {".."}:
            made = site / top
            if top != "__pycache__" and not made.exists():
                made.symlink_to(Path(str(part.locate_file(top))).resolve())
    return folder / "bin" / "python"


@pytest.mark.parametrize(
    "kind",
    # The wheel that comes of the sdist is compared with the other one below.
    ["wheel", pytest.param("sdist", marks=pytest.mark.slow)],
)
def test_it_runs_in_an_environment_of_its_declared_dependencies_alone(
    release: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    wheel, sdist = release
    parts = closure(wheel)
    assert "torch" in parts
    assert not {"pytest", "mypy", "moto", "hypothesis"} & parts.keys()
    python = fresh_environment(tmp_path / "env", parts.values())
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    options = ["--no-deps", "--no-index", "--no-build-isolation", "-q"]
    # pip builds the sdist with the environment's own setuptools, which torch requires.
    subprocess.run([*pip, "install", *options, wheel if kind == "wheel" else sdist], check=True)
    subprocess.run([*pip, "check"], check=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["COLUMNS"] = "200"

    def run(*words: str) -> str:
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    seit = str(python.parent / "seit")
    where = run(str(python), "-c", IMPORT_ALL)
    assert where.startswith(str(tmp_path / "env"))
    write_dataset(open_store(str(tmp_path / "data")))
    assert "digits" in run(seit, "inspect", "data", "digits")
    assert "5,000 rows" in run(seit, "simulate", "--rows", "5000", "--nodes", "1", "--gpus", "1")
    assert "--recipe" in run(str(python), "-m", "trainers.mtm", "--help")


IMPORT_ALL = """
import importlib, pkgutil, services, trainers
for package in (services, trainers):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.startswith("services.shards.gcs"):  # the extra `gcs`
            importlib.import_module(found.name)
print(services.__file__)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_installs_from_the_package_index_with_its_lock(
    release: tuple[Path, Path], tmp_path: Path
) -> None:
    """Some 5 GB, every file by its hash, into an environment that has nothing."""
    wheel, _ = release
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-q"]
    lock = ROOT / "deploy/image.lock"
    subprocess.run([*pip, "--no-deps", "--require-hashes", "-r", lock], check=True)
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)
    subprocess.run([python, "-m", "pip", "check"], check=True)
    subprocess.run([python.with_name("seit"), "--help"], check=True, stdout=subprocess.DEVNULL)


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


def test_the_changelog_s_newest_version_is_this_one() -> None:
    found = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert next(name for name in found if name != "Unreleased") == VERSION


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
