"""A Ray cluster of the contender's own, quiet, on loopback."""

from __future__ import annotations

import logging

import ray
import ray.data


def start(cpus: int) -> None:
    """A local cluster with `cpus` logical CPUs, the same for everyone who uses Ray."""
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
