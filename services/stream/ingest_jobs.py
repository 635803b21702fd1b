"""Jobs of an ingest on a pool of actors, one row of a Ray Dataset each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy

from services.errors import CapacityError
from services.stream.cluster import capacity, reach
from services.stream.ingest_config import IngestConfig

Progress: TypeAlias = Callable[[str, int, int, str], None]
"""Told what is done, how much of it is, of how much in all, and in which unit."""


def run_jobs(
    config: IngestConfig,
    actor: type[Callable[[dict[str, Any]], Iterator[dict[str, Any]]]],
    jobs: Sequence[dict[str, Any]],
    arguments: tuple[Any, ...],
) -> Iterator[dict[str, Any]]:
    """The answers of a pool of such actors to these jobs, as they come."""
    room = int(capacity("CPU") // config.cpus) - 1
    actors = min(config.actors or max(1, room), len(jobs))
    for kind, each in (("CPU", config.cpus), ("GPU", config.gpus)):
        if actors * each > reach(kind):
            raise CapacityError(
                f"{actors} actors of {each:g} {kind}s need {actors * each:g}; the cluster has at"
                f" most {reach(kind):g}, so the job would wait for ever: use fewer or smaller"
                " actors (--actors, --cpus, --gpus) or a larger cluster"
            )
    # One block a job, made here: no task that would need a CPU beside the actors'.
    listed = ray.data.from_arrow([pa.Table.from_pylist([job]) for job in jobs])
    dataset = listed.map_batches(
        actor,
        batch_size=1,
        batch_format="numpy",
        fn_constructor_args=arguments,
        compute=ActorPoolStrategy(size=actors),
        num_cpus=config.cpus,
        num_gpus=config.gpus or None,
    )
    dataset.context.enable_progress_bars = False
    rows: Iterator[dict[str, Any]] = iter(dataset.iter_rows())
    return rows
