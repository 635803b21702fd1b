"""Runs' folders as trainers leave them: run.json, and what each rank's meter counted."""

from __future__ import annotations

from pathlib import Path

from services.shards.store import open_store
from services.stream.account import Account
from services.stream.meter import Meter
from trainers.checkpoint import claim
from trainers.progress import FlowFile

IDENTITY = {"kind": "MtmRun", "augment": {"recipe": "mtm"}, "loop": {"seed": 0}}
TARGET = 10


def metered(
    rank: int = 0, world: int = 1, *, steps: int = 4, account: Account | None = None
) -> Meter:
    """A meter that has seen `steps` batches of 8 rows, each waited for half a second."""
    meter = Meter("digits/train", rank, world, TARGET)
    for step in range(steps):
        meter.delivered(step, 8, 0.5, account)
    return meter


def write_run(
    out: Path,
    *,
    world: int = 1,
    state: str = "running",
    steps: int = 4,
    account: Account | None = None,
) -> None:
    """A run's folder with the last word of each of its `world` ranks."""
    claim(str(out), IDENTITY)
    for rank in range(world):
        meter = metered(rank, world, steps=steps, account=account)
        if state != "running":
            meter.ended(state)
        FlowFile(str(out), rank).close(meter.snapshot())


def write_file(path: Path, data: bytes) -> None:
    """A file of a run, whole or absent, over an older one."""
    open_store(str(path.parent)).write(path.name, data)
