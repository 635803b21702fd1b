"""This project's stream in threads of the trainer's process, without Ray: a random crop alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import s3fs  # noqa: F401 - as the peers' modules import their clients of storage: before the clock
import torch

from peers.child import Batches
from peers.data import CODES
from peers.job import Job
from services.augment.config import AdaptConfig, CropConfig, RecipeConfig
from services.augment.recipe import mtm
from services.plan.epoch import OrderSpec
from services.shards.manifest import commit, load_manifest, put_asset
from services.shards.store import open_store
from services.shards.writer import DEFAULT_SHARD_ROWS, ShardWriter, build_split
from services.stream.batch import StreamBatch
from services.stream.loader import Stream, resume_step
from services.stream.pool import Pool, Sharing
from services.stream.request import RowsRequest, SourceRequest, StreamRequest
from services.tokens.codebook import Codebook
from services.types import TokenRows
from services.wire.seit import v1 as wire

DATASET = "bench"
BLOCK_ROWS = 128
CHANNELS = 32
_EPOCHS = 300  # of a whole run: a stream lays out all of it


def write(
    ids: npt.NDArray[np.uint16],
    labels: npt.NDArray[np.int64],
    folder: Path,
    shard_rows: int = DEFAULT_SHARD_ROWS,
) -> None:
    root = open_store(str(folder))
    spec = wire.TokenSpec(
        grid_height=ids.shape[1],
        grid_width=ids.shape[2],
        codes=CODES,
        channels=CHANNELS,
        image_height=256,
        image_width=256,
    )
    with ShardWriter(root, DATASET, "train", spec, shard_rows) as writer:
        for start in range(0, len(ids), 8192):
            part = slice(start, min(start + 8192, len(ids)))
            keys = [f"{row:08d}" for row in range(part.start, part.stop)]
            sizes = np.zeros(len(keys), np.int64)
            writer.add(TokenRows(np.array(ids[part]), labels[part], keys, sizes))
    weight = torch.randn(CODES, CHANNELS, generator=torch.Generator().manual_seed(1))
    commit(
        root,
        wire.Manifest(
            dataset=DATASET,
            spec=spec,
            tokenizer_kind="vitvqgan",
            assets=[put_asset(root, DATASET, "codebook", Codebook(weight).to_bytes())],
            splits=[build_split(root, DATASET, "train", writer.results, CODES)],
        ),
    )


def request(job: Job) -> StreamRequest:
    """All rows, shuffled, each cut at a random place; nothing else happens to them."""
    root = open_store(job.data)
    loaded = load_manifest(root, DATASET)
    source = SourceRequest(root.url, DATASET, loaded.manifest.version, loaded.digest, "train")
    rows = RowsRequest(
        sources=(source,),
        order=OrderSpec(0, job.batch, BLOCK_ROWS, job.lanes, job.window),
        cache_dir=job.cache,
        cache_bytes=job.cache_bytes,
    )
    recipe = RecipeConfig(
        name="crop",
        crop=(job.crop, job.crop),
        plain_crop=CropConfig(kind="random"),
        adapt=AdaptConfig(share=0.0),
    )
    return StreamRequest(rows, recipe)


def pretraining(job: Job) -> StreamRequest:
    """The same rows through masked token modelling's recipe, TokenAdapt left out: real work."""
    recipe = mtm(load_manifest(open_store(job.data), DATASET).spec, (job.crop, job.crop))
    return replace(request(job), recipe=replace(recipe, adapt=replace(recipe.adapt, share=0.0)))


class Loader:
    """One stream for all epochs, as a trainer opens it; of `request(job)` if nothing is asked."""

    def __init__(
        self,
        job: Job,
        state: Any,
        pool: Pool | None = None,
        asked: StreamRequest | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        asked = asked or request(job)
        start = 0
        if state:
            start, _ = resume_step(asked.rows, state["cursor"].numpy().tobytes())
        steps = _EPOCHS * -(-job.rows // job.batch)
        self._stream = Stream(asked, start=start, stop=steps, pool=pool, sharing=sharing)
        self._batches: Iterator[StreamBatch] = iter(self._stream)
        self._step = start

    def epoch(self) -> Batches:
        while True:
            batch = next(self._batches)
            self._step = batch.step + 1
            there = batch.rows >= 0
            if there.all():
                yield batch.inputs, batch.label
            else:
                ids, labels = batch.inputs.numpy(), batch.label.numpy()
                yield torch.from_numpy(ids[there]), torch.from_numpy(labels[there])
            if self._step % self._stream.steps_per_epoch == 0:
                return

    def state(self) -> Any:
        position = np.frombuffer(self._stream.cursor(self._step), np.uint8)
        return {"cursor": torch.from_numpy(position.copy())}
