"""From a command line to an exit code, for programs that are no training run."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from services.errors import SeitError

C = TypeVar("C")

logger = logging.getLogger(__name__)

INTERRUPTED = 130
"""Exit code of a program that Ctrl-C ended early, as shells use it."""

RESUMES = "interrupted; the same command goes on from here"


class StoppedError(Exception):
    """A signal ended a part of the program; what is done stands, and the same command goes on.

    code: the exit code that tells of it.
    """

    def __init__(self, code: int = INTERRUPTED) -> None:
        super().__init__(code)
        self.code = code


def program(
    options: type[C],
    work: Callable[[C], int | None],
    argv: Sequence[str] | None = None,
    *,
    description: str | None = None,
    prog: str | None = None,
    interrupted: str = "interrupted; nothing was written",
) -> int:
    """Parse, work, and give the exit code: the work's own or 0; 2 after an error; 143 or
    130 after SIGTERM or Ctrl-C.

    description, prog: of the help; by default the options' docstring, and the file's name.
    interrupted: what a person is told after Ctrl-C.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    more: dict[str, Any] = {"description": description} if description else {}
    try:
        config = asked(options, argv, prog=prog, **more)
        return work(config) or 0
    except (SeitError, OSError) as error:
        logger.error("%s", error)
        return 2
    except (KeyboardInterrupt, StoppedError) as error:
        logger.error("%s", interrupted)
        return error.code if isinstance(error, StoppedError) else INTERRUPTED


def asked(options: type[C], argv: Sequence[str] | None, **more: Any) -> C:
    """What a command line asks for. more: as tyro.cli takes it."""
    try:
        config: C = tyro.cli(options, args=argv, config=(tyro.conf.FlagCreatePairsOff,), **more)
        return config
    except BrokenPipeError:  # `--help | head`: who closed the pipe has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # exit would write there
        raise SystemExit(0) from None
