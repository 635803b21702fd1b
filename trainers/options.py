"""The command line of a training program, made from its run's dataclasses.

`--recipe NAME` picks the run that all other options change.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from services.shards.store import absolute_url
from trainers.config import Run
from trainers.program import asked

R = TypeVar("R", bound=Run)
Recipes = Mapping[str, Callable[[], R]]
"""Runs by the name that --recipe takes; the first is the default."""


def parse(
    kind: type[R],
    recipes: Recipes[R],
    argv: Sequence[str] | None = None,
) -> R:
    """The run that a command line asks for: the recipe's, changed by the other options.

    recipes: by name; the first is the default. argv: without the program's name, the process's
    own by default. Wrong options end the process with code 2, `--help` with 0.
    """
    rest = list(sys.argv[1:] if argv is None else argv)
    name = next(iter(recipes))
    for at, word in enumerate(rest):
        if word == "--recipe" or word.startswith("--recipe="):
            name = word.partition("=")[2] or (rest[at + 1] if at + 1 < len(rest) else "")
            break
    listing = "\n".join(
        f"  {known}: {(recipe.__doc__ or '').strip().splitlines()[0]}"
        for known, recipe in recipes.items()
    )
    if name not in recipes:
        sys.stderr.write(f"there is no recipe {name!r}; --recipe takes one of\n{listing}\n")
        raise SystemExit(2)
    about = f"{kind.__doc__}\n\nDefaults are those of `--recipe {name}`. Recipes:\n{listing}"
    return asked(kind, rest, default=replace(recipes[name](), recipe=name), description=about)


_PLACES = {
    *("out", "root", "images", "tokenizer", "tokenadapt", "init"),
    *("perceptual_weights", "keys"),
}
"""Options that name a file or folder."""

_P = TypeVar("_P")


def placed(part: _P) -> _P:
    """A run whose paths are absolute: workers compute elsewhere, in folders of their own."""
    assert is_dataclass(part)
    assert not isinstance(part, type)
    changes: dict[str, Any] = {}
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            changes[field.name] = placed(value)
        elif field.name in _PLACES:
            changes[field.name] = absolute_url(value)
    return replace(part, **changes)
