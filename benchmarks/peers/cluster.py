"""A Ray cluster of the contender's own, quiet, on loopback."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray
import ray.data


def start(cpus: int) -> None:
    """A local cluster with `cpus` logical CPUs, the same for everyone who uses Ray.

    A worker on each has run a Ray Data pipeline of next to nothing: what Ray takes to start them,
    and they to import it, is nobody's first batch.
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
    meeting = _Meeting.remote(cpus)  # type: ignore[attr-defined]
    ray.data.range(cpus, override_num_blocks=cpus).map_batches(
        _meet, fn_args=(meeting,), num_cpus=1
    ).materialize()
    ray.kill(meeting)


@ray.remote(num_cpus=0)
class _Meeting:
    """Lets nobody go before all have come: one worker would run one task after the other."""

    def __init__(self, size: int) -> None:
        self._missing = size
        self._complete = asyncio.Event()

    async def come(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._complete.set()
        await self._complete.wait()


def _meet(batch: Any, meeting: Any) -> Any:
    ray.get(meeting.come.remote())
    return batch
