"""docs/operations.md names every environment variable that is read, with its true default."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from services.settings import load_settings

ROOT = Path(__file__).resolve().parents[1]
PROOF = ROOT / "deploy/proof"  # gives its parts itself what they read
SOURCES = [
    path
    for room in ("services", "trainers", "deploy")
    for path in (ROOT / room).rglob("*.py")
    if not path.is_relative_to(PROOF)
]
COMPOSE = [ROOT / "docker-compose.yml", *(ROOT / "deploy").glob("*.yml")]
NAME = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")


def page_tables() -> list[dict[str, str]]:
    """Each table's variables, with what its last column says of each."""
    page = (ROOT / "docs/operations.md").read_text()
    part = page[page.index("## Environment variables") :].split("\n## ")[0]
    tables: list[dict[str, str]] = []
    for block in re.findall(r"(?:^\|.*\n)+", part, re.MULTILINE):
        found: dict[str, str] = {}
        for line in block.splitlines()[2:]:
            first, *_, last = (cell.strip() for cell in line.strip("|").split("|"))
            names = re.findall(r"`(\w+)`", first)
            told = re.findall(r"`([^`]*)`", last) or [last] * len(names)
            for name, default in zip(names, told, strict=True):
                assert name not in found
                found[name] = default
        tables.append(found)
    return tables


def is_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == "environ"
    return isinstance(node, ast.Name) and node.id in ("environ", "env")


def read_names(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name, default or "") of each variable that a source takes out of its environment."""
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def text(node: ast.AST) -> str:
        value = constants.get(node.id) if isinstance(node, ast.Name) else None
        value = node.value if isinstance(node, ast.Constant) else value
        return value if isinstance(value, str) else ""

    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and is_environment(node.value):
            yield text(node.slice), ""
        elif isinstance(node, ast.Call):
            named = node.func
            method = isinstance(named, ast.Attribute) and is_environment(named.value)
            helper = bool(node.args) and is_environment(node.args[0])
            if method or helper or (isinstance(named, ast.Attribute) and named.attr == "getenv"):
                words = [text(argument) for argument in node.args[helper:]]
                yield (words or [""])[0], (words[1:] or [""])[0]


@cache
def read_by_sources() -> dict[str, str]:
    found: dict[str, str] = {}
    for path in SOURCES:
        for name, default in read_names(ast.parse(path.read_text())):
            if NAME.fullmatch(name):
                found[name] = default or found.get(name, "")
    return found


def test_every_variable_that_is_read_is_told() -> None:
    programs, service, _ = page_tables()
    assert not programs.keys() & service.keys()
    assert programs.keys() | service.keys() == read_by_sources().keys()


def test_defaults_in_the_sources_are_those_of_the_page() -> None:
    programs, service, _ = page_tables()
    bare = load_settings({})
    for name, told in (programs | service).items():
        written = read_by_sources()[name]
        if told.startswith("none"):
            assert written in ("", "local"), name  # "local": in the place of no RAY_ADDRESS
        elif not written:  # a path, which the sources put together
            assert load_settings({name: told}) == bare, name
            assert load_settings({name: "/elsewhere"}) != bare, name
        else:
            assert written == told, name


def test_every_variable_of_the_compose_files_is_told_with_its_default() -> None:
    *_, told = page_tables()
    found: dict[str, set[str]] = {}
    for path in COMPOSE:
        for name, kind, word in re.findall(r"\$\{(\w+)(:[-?]|)([^}]*)\}", path.read_text()):
            if kind or not word:  # else something stands in the place of what is set, as ${A:+b}
                default = word or "none" if kind == ":-" else "required"
                found.setdefault(name, set()).add(default)
    assert found == {name: {default} for name, default in told.items()}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("os.environ['A_B']", ("A_B", "")),
        ("os.environ.get('A_B', '3')", ("A_B", "3")),
        ("os.getenv('A_B')", ("A_B", "")),
        ("N = 'A_B'\nos.environ.setdefault(N, '3')", ("A_B", "3")),
        ("_number(env, 'A_B', '3', least=1)", ("A_B", "3")),
    ],
)
def test_a_new_variable_is_seen(source: str, found: tuple[str, str]) -> None:
    assert list(read_names(ast.parse(source))) == [found]
