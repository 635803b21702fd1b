"""How fast a stream is by itself: a consumer that does nothing but receive."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from services.errors import InvalidInputError
from services.plan.epoch import OrderSpec
from services.shards.store import open_store
from services.stream.cluster import connect
from services.stream.loader import Stream
from services.stream.opening import token_request
from services.stream.pool import Pool

_MOST_ROWS_PER_SECOND = 400_000, 20_000_000
"""More than streams of small grids gave anywhere, through Ray and in threads: they end by the
clock, epochs' ends included. Ray lays a run's tasks down at its start, and makes them larger the
longer the run is; steps of threads cost nothing before they are due."""

_MOST_SECONDS = 1_000_000


@dataclass(frozen=True)
class ProbeConfig:
    """Stream rows through a recipe for a while, without training, and say how fast they came."""

    root: str
    """Folder that holds datasets: a path or a URL (file, s3, gs)."""
    dataset: str
    """Name of the dataset."""
    split: str = "train"
    """Split to stream."""
    recipe: str = "mtm"
    """Recipe: mtm, finetune, scratch, segment, eval, or a JSON file of one."""
    crop: int = 28
    """Side of the grid after the crop, tokens."""
    tokenadapt: str = ""
    """TokenAdapt's weights (.safetensors, path or URL); empty does without its path."""
    batch: int = 1024
    """Rows of a step."""
    block: int = 128
    """Rows of a block."""
    seconds: float = 10.0
    """How long to stream, seconds after the first batch."""
    actors: int = 1
    """Augmentation actors (count)."""
    cpus: float = 1.0
    """CPU cores of an actor."""
    gpus: float = 0.0
    """GPUs of an actor; fractions share one."""
    augment_on: Literal["cpu", "cuda"] | None = None
    """Device on which this process itself augments; None for actors or threads."""
    no_ray: bool = False
    """Threads of this process instead of a cluster's tasks and actors."""
    report: str = ""
    """File to write the figures to, as JSON; empty writes none."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= _MOST_SECONDS:
            raise InvalidInputError(
                f"seconds is {self.seconds}, valid are more than 0, at most {_MOST_SECONDS:,}:"
                " nothing was read; give the seconds that tell enough, such as 10"
            )
        if self.report and Path(self.report).is_dir():
            raise InvalidInputError(
                f"report is {self.report!r}, a folder: nothing was read; name the JSON file to"
                " write there"
            )


@dataclass(frozen=True)
class ProbeReport:
    """rows: delivered, rows that do not exist not counted. Rates count from the first batch on."""

    rows: int
    rows_per_second: float
    first_batch_seconds: float


def probe(config: ProbeConfig, progress: Callable[[int, float], None] | None = None) -> ProbeReport:
    """Stream, and measure. progress: called with (rows so far, rows a second) after each batch.

    Raises: NotFoundError, InvalidInputError, CapacityError for what cannot be streamed.
    """
    if config.augment_on == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError(
            "augment_on is 'cuda', and this process sees no GPU: nothing was read; leave it out for"
            " actors or threads, or give cpu"
        )
    request = token_request(
        config.root,
        config.dataset,
        config.split,
        OrderSpec(0, config.batch, config.block, lanes=1, window_shards=16),
        recipe=config.recipe,
        crop=(config.crop, config.crop),
        tokenadapt=config.tokenadapt,
    )
    if config.report:  # what cannot be made is told now, not after the measurement
        Path(config.report).parent.mkdir(parents=True, exist_ok=True)
    pool = None
    if not config.no_ray:
        connect()
        pool = Pool(actors=config.actors, cpus=config.cpus, gpus=config.gpus)
    most = _MOST_ROWS_PER_SECOND[config.no_ray]
    steps = max(1, math.ceil(most * config.seconds / config.batch))
    stream = Stream(request, stop=steps, pool=pool, augment_on=config.augment_on)
    end = float("inf")
    for batch in stream:
        now = time.monotonic()
        if batch.step == 0:
            end = now + config.seconds
        if progress is not None:
            progress(stream.meter.snapshot().rows, stream.meter.rows_per_second)
        if now >= end:
            break
    flow = stream.meter.snapshot()
    meter = stream.meter
    report = ProbeReport(flow.rows, meter.rows_per_second, meter.first_batch_seconds)
    if config.report:
        path = Path(config.report)
        open_store(str(path.parent)).write(path.name, json.dumps(asdict(report)).encode())
    return report
