"""From a command line to an exit code: what all training programs do the same way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from services.errors import SeitError
from trainers.checkpoint import FOLDER, owned
from trainers.context import Place
from trainers.launch import launch
from trainers.options import R, parse, placed
from trainers.progress import closing_table
from trainers.signals import stopping

logger = logging.getLogger(__name__)


def run(
    kind: type[R],
    recipes: Mapping[str, Callable[[], R]],
    worker: Callable[[R, Place], dict[str, float]],
    prepare: Callable[[R], R],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, launch, and log the closing table: 0 when finished, 2 after an error of ours; 143
    or 130 after SIGTERM or Ctrl-C.

    prepare: looks at the run's data and settles what the command line left open; what it refuses
    is refused before anything is written or a cluster starts.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = parse(kind, recipes, argv)
    try:
        config = prepare(placed(config))
        with owned(config.out, config.identity(), config.may_differ):
            pass  # refused here, before a cluster starts; its first worker owns it from then on
        with stopping("saving a checkpoint") as stop:
            figures = launch(config, config.cluster, worker, stop)
    except (SeitError, OSError) as error:
        logger.error("%s", error)
        return 2
    logger.info("%s", closing_table(config.out, figures))
    if not figures.get("finished"):
        said = "stopped before the first step; the same command begins again"
        if step := figures["step"]:
            folder = f"{config.out.rstrip('/')}/{FOLDER}"
            said = (
                f"stopped after step {step:.0f}, which is saved in {folder}; the same command goes"
                " on from here"
            )
        logger.warning("%s", said)
        return stop.code
    return 0
