"""Ray Data as its guide to loading and shuffling for training describes it: `read_parquet`, files
shuffled, a vectorised transform, and a local shuffle buffer over single rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.fs
import ray
from numpy.lib.stride_tricks import sliding_window_view

from peers.child import Batches
from peers.cluster import start
from peers.job import CREDENTIALS, Job

FILE_ROWS = 8192
SHUFFLE_ROWS = 8192


def write(ids: npt.NDArray[np.uint16], labels: npt.NDArray[np.int64], folder: Path) -> None:
    start(2)
    files = -(-len(ids) // FILE_ROWS)

    def cut(batch: Any) -> Any:
        at = int(batch["id"][0]) * FILE_ROWS
        return {"ids": np.array(ids[at : at + FILE_ROWS]), "label": labels[at : at + FILE_ROWS]}

    rows = ray.data.range(files, override_num_blocks=files).map_batches(cut, batch_size=1)
    rows.write_parquet(str(folder))


def prepare(job: Job) -> None:
    start(job.cpus)


class Loader:
    def __init__(self, job: Job, state: Any) -> None:
        self._batch = job.batch
        files = None
        if job.endpoint:
            files = pyarrow.fs.S3FileSystem(
                access_key=CREDENTIALS["AWS_ACCESS_KEY_ID"],
                secret_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
                region=CREDENTIALS["AWS_DEFAULT_REGION"],
                endpoint_override=job.endpoint,
            )
        side = job.crop

        def crop(batch: Any) -> Any:
            ids = batch["ids"]
            windows = sliding_window_view(ids, (side, side), axis=(1, 2))
            corner = np.random.default_rng().integers(0, windows.shape[1], (2, len(ids)))
            return {"ids": windows[np.arange(len(ids)), *corner], "label": batch["label"]}

        path = job.data.removeprefix("s3://")
        read = ray.data.read_parquet(path, filesystem=files, shuffle="files")
        self._dataset = read.map_batches(crop, batch_size=job.batch)

    def epoch(self) -> Batches:
        batches = self._dataset.iter_torch_batches(
            batch_size=self._batch,
            local_shuffle_buffer_size=SHUFFLE_ROWS,
            prefetch_batches=2,
        )
        for batch in batches:
            yield batch["ids"], batch["label"]

    def state(self) -> Any:
        raise NotImplementedError("Ray Data's iterators have no position to save")
