"""Joining a Ray cluster, in one place: a job's, one that runs here, or a local one of our own."""

from __future__ import annotations

import logging

import ray

logger = logging.getLogger(__name__)


def connect() -> None:
    """Join the cluster that RAY_ADDRESS (or a job) names, else the one running here, else start one.

    Does nothing when this process has joined already.
    """
    if ray.is_initialized():
        return
    ray.init(log_to_driver=True, logging_level=logging.WARNING)
    resources = ray.cluster_resources()
    logger.info(
        "joined Ray at %s: %g CPUs, %g GPUs",
        ray.get_runtime_context().gcs_address,
        resources.get("CPU", 0),
        resources.get("GPU", 0),
    )
