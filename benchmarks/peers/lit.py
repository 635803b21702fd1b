"""LitData as its README describes it: `optimize` to chunks of 64 MB, StreamingDataset with a
transform, StreamingDataLoader.
"""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import litdata  # type: ignore[import-not-found]
import numpy as np
import numpy.typing as npt
from litdata.streaming import downloader  # type: ignore[import-not-found]

from peers.child import Batches
from peers.job import CREDENTIALS, Job


def _row(
    at: int, ids: npt.NDArray[np.uint16], labels: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[np.uint16] | int]:
    return {"ids": np.array(ids[at]), "label": int(labels[at])}


def write(ids: npt.NDArray[np.uint16], labels: npt.NDArray[np.int64], folder: Path) -> None:
    litdata.optimize(
        fn=partial(_row, ids=ids, labels=labels),
        inputs=list(range(len(ids))),
        output_dir=str(folder),
        chunk_bytes="64MB",
        num_workers=1,
        verbose=False,
        start_method="fork",
    )


def _crop(sample: dict[str, Any], side: int) -> Any:
    ids = sample["ids"]
    y = random.randrange(ids.shape[0] - side + 1)
    x = random.randrange(ids.shape[1] - side + 1)
    return ids[y : y + side, x : x + side], sample["label"]


class Loader:
    def __init__(self, job: Job, state: Any) -> None:
        place: dict[str, Any] = {}
        if job.endpoint:
            # Its client takes an endpoint, but no plain HTTP, for which it has no option.
            downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
            options = {
                "endpoint_url": job.endpoint,
                "aws_access_key_id": CREDENTIALS["AWS_ACCESS_KEY_ID"],
                "aws_secret_access_key": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            }
            place = {"cache_dir": job.cache, "storage_options": options}
        dataset = litdata.StreamingDataset(
            job.data,
            shuffle=True,
            drop_last=True,
            transform=partial(_crop, side=job.crop),
            **place,
        )
        self._loader = litdata.StreamingDataLoader(
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
