"""WebDataset as its documentation describes it: tar shards in random order, a shuffle buffer of
1000 samples, batches made inside the workers, WebLoader. Over HTTP by curl, with a cache folder.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import webdataset  # type: ignore[import-not-found]
from torch import Tensor

from peers.child import Batches
from peers.job import Job

SHARD_ROWS = 8192
_BUFFER_ROWS = 1000


def write(ids: npt.NDArray[np.uint16], labels: npt.NDArray[np.int64], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pattern = str(folder / "%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=SHARD_ROWS, verbose=0) as out:
        for at, (row, label) in enumerate(zip(ids, labels, strict=True)):
            out.write({"__key__": f"{at:08d}", "ids.npy": np.asarray(row), "cls": int(label)})


class Loader:
    def __init__(self, job: Job, state: Any) -> None:
        shards = -(-job.rows // SHARD_ROWS)
        names = [f"{at:06d}.tar" for at in range(shards)]
        place: dict[str, Any] = {}
        if job.endpoint:
            urls = [f"{job.endpoint}/{job.data.removeprefix('s3://')}/{name}" for name in names]
            place = {"cache_dir": job.cache}
        else:
            urls = [f"{job.data}/{name}" for name in names]
        side = job.crop

        def crop(sample: Any) -> Any:
            ids, label = sample
            y = random.randrange(ids.shape[0] - side + 1)
            x = random.randrange(ids.shape[1] - side + 1)
            return ids[y : y + side, x : x + side], label

        dataset = (
            webdataset.WebDataset(urls, shardshuffle=shards, **place)
            .shuffle(_BUFFER_ROWS)
            .decode()
            .to_tuple("ids.npy", "cls")
            .map(crop)
            .batched(job.batch)
        )
        self._loader = webdataset.WebLoader(
            dataset,
            batch_size=None,
            num_workers=job.workers,
            persistent_workers=job.workers > 0,
        )

    def epoch(self) -> Batches:
        for ids, labels in self._loader:
            yield _tensor(ids), _tensor(labels)

    def state(self) -> Any:
        raise NotImplementedError("WebDataset has no position to save")


def _tensor(values: Any) -> Tensor:
    return values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
