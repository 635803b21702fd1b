"""The process that runs one job: `python -m peers.child JOB.json`.

Whatever the library, the consumer is the same: it takes a batch, looks at its shape, adds its
labels up, and asks for the next one.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from peers.job import Job

Batches = Iterator[tuple[Tensor, Tensor]]


class Loader(Protocol):
    """What a contender's module gives: endless calls of `epoch`, and a position to save."""

    def __init__(self, job: Job, state: Any) -> None: ...

    def epoch(self) -> Batches:
        """(ids (n, crop, crop) of an integer type, labels (n,)) of one epoch."""

    def state(self) -> Any:
        """The position after the batches given out so far: plain values and tensors."""


def stream(job: Job, contender: Any) -> dict[str, Any]:
    """Epochs with their times; the clock starts when libraries are loaded and Ray runs."""
    prepare = getattr(contender, "prepare", None)
    if prepare is not None:
        prepare(job)
    state = torch.load(job.state, weights_only=True) if job.state else None
    saves = {int(step): path for step, path in job.states.items()}
    epochs = []
    asked = began = time.perf_counter()
    worked = time.process_time()
    loader: Loader = contender.Loader(job, state)
    for _ in range(job.epochs):
        rows, label_sum, first, steps = 0, 0, 0.0, 0
        for ids, labels in loader.epoch():
            if not steps:
                first = time.perf_counter() - asked
            if ids.shape[1:] != (job.crop, job.crop) or ids.is_floating_point():
                raise AssertionError(f"{job.contender} gave {tuple(ids.shape)} {ids.dtype}")
            steps += 1
            rows += len(labels)
            label_sum += int(labels.sum())
            if steps in saves:
                torch.save(loader.state(), saves[steps])
            if steps == job.limit:
                break
        ended, done = time.perf_counter(), time.process_time()
        epochs.append(
            {
                "rows": rows,
                "label_sum": label_sum,
                "steps": steps,
                "first_batch_seconds": first,
                "seconds": ended - asked,
                "core_seconds": done - worked,
            }
        )
        asked, worked = ended, done
    return {"epochs": epochs, "seconds": asked - began}


def write(job: Job, contender: Any) -> dict[str, Any]:
    """The rows in the contender's own format."""
    began = time.perf_counter()
    raw = Path(job.raw)
    ids = np.load(raw / "ids.npy", mmap_mode="r")
    contender.write(ids, np.load(raw / "labels.npy"), Path(job.data))
    return {"seconds": time.perf_counter() - began}


def main() -> None:
    job = Job.load(Path(sys.argv[1]))
    contender = importlib.import_module(f"peers.{job.contender}")
    result = write(job, contender) if job.action == "write" else stream(job, contender)
    Path(job.result).write_text(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # not every library ends its threads and workers by itself


if __name__ == "__main__":
    main()
