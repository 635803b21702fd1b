"""`seit` run in the test's process, as a user sees it: exit code, stdout and stderr."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Ended:
    """One finished command."""

    code: int
    out: str
    err: str


Seit = Callable[..., Ended]


def run_seit(capsys: pytest.CaptureFixture[str], *args: str) -> Ended:
    """Run the command line to its end."""
    from services import cli

    with pytest.raises(SystemExit) as ended:
        cli.main(args)
    shown = capsys.readouterr()
    return Ended(int(ended.value.code or 0), shown.out, shown.err)
