"""docs/training.md has every recipe of `trainers/recipes`, as the recipe says of itself."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainers import recipes

PAGE = Path(__file__).resolve().parents[2] / "docs/training.md"


def told() -> dict[str, tuple[str, str]]:
    """(program, what it should reach) of each recipe of the page's table."""
    page = PAGE.read_text()
    table = page[page.index("| recipe | program |") :].split("\n\n")[0]
    found: dict[str, tuple[str, str]] = {}
    for line in table.splitlines()[2:]:
        first, second, _, reach = line.strip("|").split(" | ")
        names, programs = (re.findall(r"`([^`]+)`", cell) for cell in (first, second))
        programs = programs * len(names) if len(programs) == 1 else programs
        found |= {n: (p, reach) for n, p in zip(names, programs, strict=True)}
    return found


MADE: dict[str, Callable[[], Any]] = {
    name: make
    for module in pkgutil.iter_modules(recipes.__path__)
    for name, make in importlib.import_module(f"trainers.recipes.{module.name}").RECIPES.items()
}
TOLD = told()


def test_the_page_has_the_recipes_that_there_are() -> None:
    assert TOLD.keys() == MADE.keys()


@pytest.mark.parametrize("name", MADE)
def test_a_recipe_opens_with_its_command_its_figure_and_where_that_is_from(name: str) -> None:
    about = MADE[name].__doc__ or ""
    program, reach = TOLD[name]
    assert f"python trainers/{program} --recipe {name} " in about.replace("\n", " ")
    assert "Should reach:" in about
    assert "Source:" in about
    if "; " not in reach:  # else one of each recipe in the line
        for figure in re.findall(r"\d+\.\d", reach):
            assert figure in about
