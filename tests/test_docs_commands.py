"""Programs take the command lines and the options that pages, recipes and the RayJob show of them.

Each program's own parser reads them; what would begin behind it does not.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, get_args
from unittest.mock import patch

import pytest
import tyro
import yaml

from services import cli
from services.augment.recipe import RECIPES as AUGMENTATIONS
from services.wire.seit import v1 as wire
from tests.test_docs import PAGES, ROOT
from tests.trainers.test_recipes import MADE, TOLD
from trainers.data_config import AugmentConfig
from trainers.streams import recipe_of

ELIDED = ("…", "...")
PROGRAM = re.compile(
    r"(?:^|(?<=\s))(?:seit (?=[a-z])|python (?=(trainers|benchmarks)/[a-z_]+\.py))"
)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9.-]*")
LISTED = re.compile(r". ((?:--?\w+ [A-Z]+, )?--[\w.-]+).*?(?:  |$)")  # in a help, in its frame
OTHERS = {"--profile"}  # of docker compose
STUDY_OPTIONS = {
    "mtm_options": ("mtm", "mtm"),
    "classify_options": ("classify", "scratch"),
    "options": ("classify", "scratch"),
}
"""Options of studies that hold options: the program that they are for, the study's recipe of it."""
TEXTS = {path.name: path.read_text() for path in PAGES if path.name != "CHANGELOG.md"}


class ReadError(Exception):
    """A program ended before its options were read: the code, and what it said."""


class Read(BaseException):
    """What a program was asked for; raised in the place of its work."""


def read(words: Sequence[str]) -> Any:
    """The options that a command line gives to its program. Raises: ReadError."""
    parser, said = tyro.cli, io.StringIO()

    def only_read(*args: Any, **named: Any) -> None:
        raise Read(parser(*args, **named))

    def become(_: str, command: Sequence[str]) -> None:
        with patch.object(sys, "argv", command[2:]):
            runpy.run_path(f"{ROOT}/{command[2].replace('.', '/')}.py", run_name="__main__")

    with (
        patch.object(tyro, "cli", only_read),
        patch.object(os, "execv", become),
        patch.object(sys, "argv", list(words[1:])),
        patch.object(sys, "path", [str(ROOT / words[1]).rpartition("/")[0], *sys.path]),
        patch.dict(os.environ, COLUMNS="120"),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        try:
            if words[0] == "seit":
                cli.main(words[1:])
            else:
                runpy.run_path(str(ROOT / words[1]), run_name="__main__")
        except Read as asked:
            return asked.args[0]
        except SystemExit as ended:
            raise ReadError(f"code {ended.code}: {said.getvalue()}") from ended
    raise AssertionError("it reads no options")


@cache
def helped(program: tuple[str, ...]) -> dict[str, str]:
    """What a program's help says of each option: of `("seit", "verify")`, `("python", "a.py")`."""
    with pytest.raises(ReadError, match="code 0") as shown:
        read((*program, "--help"))
    told: dict[str, str] = {}
    names: list[str] = []
    for line in str(shown.value).splitlines():
        if begun := LISTED.match(line):
            names = OPTION.findall(begun[1])
        elif line[1:5].strip():
            names = []
        told |= {name: told.get(name, "") + line[begun.end() if begun else 1 :] for name in names}
    return told


def options_of(program: tuple[str, ...]) -> set[str]:
    """The options that a program's help lists."""
    return set(helped(program))


def blocks(text: str) -> Iterator[str]:
    """Each command of a page's blocks, on one line, with the page's shell variables put in."""
    found = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    found += re.findall(r"(?:^    .*\n)+", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    for block in found:
        variables: dict[str, str] = {}
        for line in block.replace("\\\n", " ").splitlines():
            if given := re.match(r"([A-Z])=(.*)", line):
                (variables[given[1]],) = shlex.split(given[2], comments=True)
                continue
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            if program := PROGRAM.search(line):
                yield line[program.start() :]


def spans(text: str) -> Iterator[str]:
    """What stands in a page's text as code."""
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", plain))


def split(line: str) -> tuple[str, ...]:
    """Words of a command line, without its comment and without what it leaves out."""
    return tuple(word for word in shlex.split(line, comments=True) if word not in ELIDED)


JOB = yaml.safe_load((ROOT / "deploy/kubernetes/rayjob.yaml").read_text())["spec"]["entrypoint"]
COMMANDS = sorted(
    {(page, split(line)) for page in TEXTS for line in blocks(TEXTS[page])}
    | {(name, split((make.__doc__ or "").split("\n\n")[1])) for name, make in MADE.items()}
    | {("rayjob.yaml", split(JOB))}
)
SPANS = sorted({(page, span) for page in TEXTS for span in spans(TEXTS[page])})
PROGRAMS = [("seit", command.__metadata__[0].name) for command in get_args(cli.Command)] + [
    ("python", str(path.relative_to(ROOT)))
    for room in ("trainers", "benchmarks")
    for path in sorted((ROOT / room).glob("*.py"))
    if "__main__" in path.read_text()
]
NAMED = sorted({(page, split(span)[:2]) for page, span in SPANS if PROGRAM.match(span)})


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=str)
def test_a_command_is_one_that_its_program_takes(page: str, words: tuple[str, ...]) -> None:
    if words[2:] == ("--help",):
        options_of(words[:2])
        return
    asked = read(words)
    for name, (program, recipe) in STUDY_OPTIONS.items():
        if inner := getattr(asked, name, ""):
            chosen = getattr(asked, recipe)
            read(("python", f"trainers/{program}.py", "--recipe", chosen, *shlex.split(inner)))
    augment = getattr(asked, "augment", None)
    if isinstance(augment, AugmentConfig):
        grid = wire.TokenSpec(grid_height=64, grid_width=64, codes=391, channels=32)
        assert recipe_of(augment, grid).name in AUGMENTATIONS


@pytest.mark.parametrize(("page", "program"), NAMED, ids=str)
def test_a_program_in_the_text_is_there(page: str, program: tuple[str, ...]) -> None:
    options_of(program)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda words: words[1])
def test_a_help_says_something_of_each_option(program: tuple[str, ...]) -> None:
    told = {
        option: re.split(r"\((?:default|req)", text)[0] for option, text in helped(program).items()
    }
    assert [option for option, text in told.items() if not re.search("[a-z]{3}", text)] == []


TRAINERS = {
    name: ("python", f"trainers/{program}", "--recipe", name) for name, (program, _) in TOLD.items()
}
WHOLE = [*dict.fromkeys([*TRAINERS.values(), *(words for _, words in COMMANDS)])]
"""Command lines that a page's options may be added to."""


def takes(words: tuple[str, ...], more: tuple[str, ...]) -> bool:
    """Whether the command's program takes these options too."""
    named = {option.partition("=")[0] for option in more if OPTION.match(option)}
    if "--help" in words or not named <= options_of(words[:2]):
        return False
    if len(named) == len(more) or any(re.fullmatch(r"[A-Z]+|.*….*", word) for word in more):
        return True  # no values, or such that stand for others
    try:
        read((*words, *more))
    except ReadError:
        return False
    return True


@pytest.mark.parametrize(("page", "span"), [(p, s) for p, s in SPANS if OPTION.search(s)])
def test_options_in_the_text_are_those_of_a_program(page: str, span: str) -> None:
    words = split(span)
    if PROGRAM.match(span):
        assert set(OPTION.findall(span)) <= options_of(words[:2]), page
    elif words[0].startswith("--") and words[0] not in {*OTHERS, "--help"}:
        assert any(takes(whole, words) for whole in WHOLE), page


def test_a_misspelt_option_or_a_value_out_of_range_is_seen() -> None:
    trainer = TRAINERS["mtm-base"]
    assert takes(trainer, ("--loop.epochs", "50"))
    assert not takes(trainer, ("--loop.epoch", "50"))
    assert not takes(trainer, ("--cluster.workers", "7"))
    with pytest.raises(ReadError, match="code 2"):
        read(("seit", "verify", "ROOT", "NAME", "--row"))
