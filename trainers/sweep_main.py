"""From a sweep's command line to its exit code: what all sweeps do the same way."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from services.errors import SeitError
from trainers.command import INTERRUPTED
from trainers.sweep import Data, Setting, StoppedError, Sweep, SweepConfig
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
    """Prepare, compute what is missing, and report: 0 when done, 2 after an error, 130 if stopped.

    settings: the rows of the table. report: writes files; (tables as text, the files).
    """
    config = tyro.cli(
        kind, args=argv, description=description, config=(tyro.conf.FlagCreatePairsOff,)
    )
    _log_to_terminal()
    try:
        data, overrides = prepare(config)
        results = Sweep(config, data, overrides).run(settings(config, data))
        text, files = report(config, data, results)
    except SeitError as error:
        logger.error("%s", error)
        return 2
    except (StoppedError, KeyboardInterrupt):
        logger.warning("stopped; the same command goes on from here")
        return INTERRUPTED
    logger.info("%s", text)
    for file in files:
        logger.info("written: %s", file)
    return 0


def _log_to_terminal() -> None:
    """The sweep's own lines, and only warnings of the runs that it is made of."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in ("sweep", "sweep_main", "chain"):
        logging.getLogger(f"trainers.{name}").setLevel(logging.INFO)
