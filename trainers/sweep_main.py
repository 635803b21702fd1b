"""From a sweep's command line to its exit code: what all sweeps do the same way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from trainers.program import RESUMES, program
from trainers.sweep import Data, Setting, Sweep, SweepConfig
from trainers.sweep_data import prepare
from trainers.sweep_report import Results

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=SweepConfig)


def main(
    kind: type[C],
    settings: Callable[[C, Data], Sequence[Setting]],
    report: Callable[[C, Data, Results], tuple[str, Sequence[Path]]],
    description: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Prepare, compute what is missing, and report: 0 when done, 2 after an error; 143 or 130 after
    SIGTERM or Ctrl-C.

    settings: the rows of the table. report: writes files; (tables as text, the files).
    """

    def work(config: C) -> None:
        hush_runs(logger)
        data, overrides = prepare(config)
        results = Sweep(config, data, overrides).run(settings(config, data))
        text, files = report(config, data, results)
        logger.info("%s", text)
        for file in files:
            logger.info("written: %s", file)

    return program(kind, work, argv, description=description, interrupted=RESUMES)


def hush_runs(own: logging.Logger) -> None:
    """The program's own lines and its sweep's, and only warnings of the runs that it is made of.

    own: the program's logger, whose name is another one when it is started by its file.
    """
    logging.getLogger().setLevel(logging.WARNING)
    ours = [logging.getLogger(f"trainers.{name}") for name in ("sweep", "chain", "job_graph")]
    for found in (own, *ours):
        found.setLevel(logging.INFO)
