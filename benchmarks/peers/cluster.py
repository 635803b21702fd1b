"""A Ray cluster of the contender's own, quiet, on loopback."""

from __future__ import annotations

import logging
from typing import Any

import ray
import ray.data


def start(cpus: int) -> None:
    """A local cluster with `cpus` logical CPUs, the same for everyone who uses Ray.

    Its workers have run a Ray Data pipeline of next to nothing: what Ray takes to start them, and
    they to import it, is nobody's first batch.
    """
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=10**9,
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.range(4 * cpus, override_num_blocks=4 * cpus).map_batches(_same).materialize()


def _same(batch: Any) -> Any:
    return batch
