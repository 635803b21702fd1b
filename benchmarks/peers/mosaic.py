"""MosaicML Streaming as its documentation describes it: MDS shards, a subclass of StreamingDataset
that transforms each sample, StreamingDataLoader; shuffled by its default, py1e.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import streaming  # type: ignore[import-not-found]
from streaming.base.util import (  # type: ignore[import-not-found]
    clean_stale_shared_memory,
)

from peers.child import Batches
from peers.job import Job


def write(ids: npt.NDArray[np.uint16], labels: npt.NDArray[np.int64], folder: Path) -> None:
    columns = {"ids": f"ndarray:uint16:{ids.shape[1]},{ids.shape[2]}", "label": "int"}
    with streaming.MDSWriter(out=str(folder), columns=columns) as out:
        for row, label in zip(ids, labels, strict=True):
            out.write({"ids": np.asarray(row), "label": int(label)})


class Crops(streaming.StreamingDataset):  # type: ignore[misc]
    """Each sample cut at a random place."""

    def __init__(self, side: int, **options: Any) -> None:
        super().__init__(**options)
        self._side = side

    def __getitem__(self, at: int) -> Any:
        sample = super().__getitem__(at)
        ids, side = sample["ids"], self._side
        y = random.randrange(ids.shape[0] - side + 1)
        x = random.randrange(ids.shape[1] - side + 1)
        return ids[y : y + side, x : x + side], sample["label"]


class Loader:
    def __init__(self, job: Job, state: Any) -> None:
        clean_stale_shared_memory()
        place = {"local": job.data}
        if job.endpoint:
            place = {"remote": job.data, "local": job.cache}
        dataset = Crops(job.crop, shuffle=True, batch_size=job.batch, **place)
        self._loader = streaming.StreamingDataLoader(
            dataset,
            batch_size=job.batch,
            num_workers=job.workers,
            persistent_workers=job.workers > 0,
        )
        if state:
            self._loader.load_state_dict(state)

    def epoch(self) -> Batches:
        yield from self._loader

    def state(self) -> Any:
        return self._loader.state_dict()
