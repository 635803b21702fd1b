"""The rules between rooms, read from the sources: nothing is imported here."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = 400

LEAVES = {
    "services.types",
    "services.errors",
    "services.settings",
    "services.grids",
    "services.wire",
}
# What each room may import besides itself. Rooms that are not named here may import nothing.
MAY_IMPORT: dict[str, set[str]] = {
    "services.types": set(),
    "services.errors": set(),
    "services.grids": {"services.types"},
    "services.folders": {"services.errors"},
    "services.settings": {"services.errors"},  # a wrong variable is a user's error like others
    "services.wire": set(),
    "services.tokens": LEAVES,
    "services.plan": LEAVES,
    "services.layouts": LEAVES,
    "services.pictures": LEAVES | {"services.folders", "services.layouts"},
    "services.masks": LEAVES | {"services.folders", "services.pictures"},
    "services.sources": LEAVES
    | {"services.folders", "services.pictures", "services.masks", "services.shards.store"},
    "services.shards": LEAVES | {"services.folders", "services.tokens", "services.plan"},
    "services.augment": LEAVES | {"services.tokens", "services.plan"},
    "services.stream": LEAVES
    | {
        "services.pictures",
        "services.masks",
        "services.sources",
        "services.tokens",
        "services.plan",
        "services.shards",
        "services.augment",
    },
    "services.gallery": LEAVES
    | {
        "services.folders",
        "services.tokens",
        "services.plan",
        "services.shards",
        "services.augment",
        "services.stream",
    },
    "services.stats": LEAVES
    | {
        "services.folders",
        "services.shards",
        "services.tokens",
        "services.augment",
        "services.plan.draws",
        "services.stream.meter",
    },
    "services.cli": {"services"},
    "services.cli_gallery": {"services"},
    "services.cli_simulate": {"services"},
    "services.cli_store": {"services"},
    "services.cli_tables": {"services"},
    "services.cli_tokenizer": {"services"},
    "trainers": {"services"},
}
# Third-party packages of the rooms that are kept pure, besides the standard library.
PURE: dict[str, set[str]] = {
    "services.types": {"numpy"},
    "services.errors": set(),
    "services.plan": {"numpy", "pydantic"},  # pydantic: the cursor's bytes
    "services.tokens": {"numpy", "torch", "timm", "kornia", "safetensors", "pydantic"},
    "services.augment": {"numpy", "torch", "timm", "kornia", "safetensors", "pydantic"},
}
# Heavy packages and the only places that may import them.
HOMES: dict[str, tuple[str, ...]] = {
    "ray": ("services.stream", "trainers.launch"),
    "fastapi": ("services.stats",),
    "starlette": ("services.stats",),
}


def sources(*folders: str) -> list[Path]:
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in found if "services/wire" not in path.as_posix())


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def imports_of(tree: ast.AST, module: str, is_package: bool = False) -> set[str]:
    """Absolute names of all that is imported, anywhere in the source; `a.b` for `from a import b`.

    What is imported from a module of the project counts with its name, as it may be a module.
    """
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join([*above, base] if base else above)
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def calls_of(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def forbidden_imports(module: str, names: set[str]) -> list[str]:
    """What a module imports against the rules between rooms."""
    wrong = []
    room = max((room for room in MAY_IMPORT if within(module, room)), key=len, default=module)
    allowed = MAY_IMPORT.get(room, set())
    for name in sorted(names):
        package = name.partition(".")[0]
        if package in ("services", "trainers"):
            if not any(within(name, other) for other in {room, *allowed}):
                wrong.append(f"{module} imports {name}: {room} may import {sorted(allowed)} only")
        elif package in HOMES:
            if not any(within(module, home) for home in HOMES[package]):
                wrong.append(f"{module} imports {name}: only {HOMES[package]} may")
        elif room in PURE and package not in PURE[room] | sys.stdlib_module_names:
            wrong.append(f"{module} imports {name}: {room} may use {sorted(PURE[room])} only")
    return wrong


def unsafe_reads(tree: ast.AST) -> list[str]:
    """Calls that could execute code from a file that is read."""
    wrong = []
    for called, node in calls_of(tree):
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called == "torch.load" and options.get("weights_only") != "True":
            wrong.append("torch.load without weights_only=True")
        if options.get("allow_pickle") == "True":
            wrong.append(f"{called} with allow_pickle=True")
        if called.split(".")[0] in ("pickle", "cloudpickle", "dill") and "load" in called:
            wrong.append(called)
    return wrong


@pytest.mark.parametrize("path", sources("services", "trainers"), ids=module_of)
def test_a_module_keeps_the_rules(path: Path) -> None:
    tree = ast.parse(path.read_text())
    module = module_of(path)
    assert forbidden_imports(module, imports_of(tree, module, path.stem == "__init__")) == []
    assert unsafe_reads(tree) == []
    assert not any(
        ast.unparse(node) == "sys.path"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
    ), "both packages are importable as they are: no sys.path tricks"
    if module != "services.cli":
        assert not any(called == "print" for called, _ in calls_of(tree)), "log, do not print"


@pytest.mark.parametrize("path", sources("services", "trainers", "tests", "benchmarks"), ids=str)
def test_a_file_stays_readable(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MOST_LINES, f"{lines} lines: find the two files in it"


def test_every_room_has_its_rule() -> None:
    rooms = {path.parent.name for path in (ROOT / "services").glob("*/__init__.py")}
    assert {f"services.{room}" for room in rooms} <= set(MAY_IMPORT)


@pytest.mark.parametrize("package", ["services", "trainers"])
def test_a_package_itself_imports_nothing(package: str) -> None:
    """Whatever stood in it would run before any leaf."""
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    assert imports_of(tree, package, is_package=True) == set()


def test_no_python_package_is_called_proto() -> None:
    assert list((ROOT / "proto").rglob("*.py")) == []


def test_scripts_of_trainers_shadow_no_library() -> None:
    """`python trainers/mtm.py` puts that folder first on the path."""
    ours = {path.stem for path in (ROOT / "trainers").iterdir() if path.suffix in ("", ".py")}
    taken = sys.stdlib_module_names | set(packages_distributions())
    assert (ours - {"__init__", "__pycache__"}) & taken == set()


@pytest.mark.parametrize(
    ("module", "source", "rule"),
    [
        ("services.types", "import services.errors", "may import [] only"),
        ("services.plan.epoch", "import torch", "may use ['numpy', 'pydantic'] only"),
        ("services.plan.epoch", "from ..shards import store", "may import"),
        ("services.tokens.dct", "def f():\n    from ray import data", "only ('services.stream'"),
        ("services.shards.store", "import fastapi.routing", "only ('services.stats',)"),
        ("services.shards.reader", "from services import stream", "may import"),
        ("services.stats.app", "from services.stream import pipeline", "may import"),
        ("services.stream.loader", "from trainers.loop import Stream", "may import"),
        ("services.cli", "import trainers", "may import"),
        ("services.unknown", "from services.types import Span", "may import [] only"),
        ("trainers.loop", "import ray.train", "only ('services.stream', 'trainers.launch')"),
    ],
)
def test_a_broken_rule_is_seen(module: str, source: str, rule: str) -> None:
    wrong = forbidden_imports(module, imports_of(ast.parse(source), module))
    assert len(wrong) == 1
    assert rule in wrong[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("services.stats.app", "from services.stream.meter import Meter\nimport fastapi"),
        ("services.stats.app", "from services.stream import meter"),
        ("services.plan.cursor", "from .epoch import OrderSpec\nfrom ..wire.seit import v1"),
        ("services.stream.pipeline", "import ray.data\nfrom services.shards import reader"),
        ("trainers.launch", "import ray\nfrom services.stream import loader"),
        ("services.cli", "from services.stats.app import create"),
    ],
)
def test_a_kept_rule_passes(module: str, source: str) -> None:
    assert forbidden_imports(module, imports_of(ast.parse(source), module)) == []


def test_relative_imports_of_a_package_are_resolved() -> None:
    tree = ast.parse("from .epoch import Plan\nfrom .. import types")
    assert imports_of(tree, "services.plan", is_package=True) == {
        "services.plan.epoch.Plan",
        "services.types",
    }


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("torch.load(path)", ["torch.load without weights_only=True"]),
        ("torch.load(path, weights_only=False)", ["torch.load without weights_only=True"]),
        ("torch.load(path, weights_only=True)", []),
        ("np.load(path, allow_pickle=True)", ["np.load with allow_pickle=True"]),
        ("np.load(path)", []),
        ("pickle.loads(data)", ["pickle.loads"]),
        ("pickle.dumps(data)", []),
    ],
)
def test_unsafe_reads_are_seen(source: str, found: list[str]) -> None:
    assert unsafe_reads(ast.parse(source)) == found


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("services.stream.fetch", ["torch", "ray", "sklearn"]),
        ("services.stream.steps", ["torch", "sklearn"]),
    ],
)
def test_fetching_loads_nothing_heavy(module: str, heavy: list[str]) -> None:
    """A cold fetch task must not pay seconds of imports on every core of a cluster."""
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
