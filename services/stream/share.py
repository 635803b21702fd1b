"""The work of a stream, free of Ray: which rows a rank gets, fetched and augmented.

Each function depends on its arguments alone, so a retry, another process or another number of
workers gives the same bytes. What is dear to build (manifest, plan, networks) a process builds once.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from services.augment.recipe import Augmenter
from services.augment.tokenadapt import TokenAdapt
from services.errors import NotFoundError
from services.plan.draws import Draws
from services.plan.epoch import Plan, SequentialPlan
from services.shards.cache import ShardCache
from services.shards.manifest import LoadedManifest, load_manifest, read_asset
from services.shards.reader import DatasetReader
from services.shards.store import open_store
from services.stream.batch import inputs_of, numbers, pack, position
from services.stream.request import StreamRequest
from services.tokens.codebook import Codebook


@lru_cache(maxsize=16)
def cache_at(directory: str, limit_bytes: int) -> ShardCache:
    """The node's cache as this process sees it: one object, so that its counters add up."""
    return ShardCache(Path(directory), limit_bytes)


@lru_cache(maxsize=16)
def reader_for(request: StreamRequest) -> DatasetReader:
    """Reader of the request's split."""
    cache = cache_at(request.cache_dir, request.cache_bytes)
    return DatasetReader(
        open_store(request.root), request.dataset, request.version, request.split, cache
    )


@lru_cache(maxsize=16)
def plan_for(request: StreamRequest) -> Plan | SequentialPlan:
    """Order of the request's rows: the same in every process."""
    shard_rows = reader_for(request).shard_rows
    kind = SequentialPlan if request.sequential else Plan
    return kind(shard_rows, request.order)


def codebook_of(root: str, loaded: LoadedManifest) -> Codebook:
    """The codebook that stands beside a dataset's shards, checked against its digest."""
    for asset in loaded.manifest.assets:
        if asset.kind == "codebook":
            return Codebook.load(read_asset(open_store(root), loaded.manifest.dataset, asset))
    raise NotFoundError(
        f"dataset {loaded.manifest.dataset!r} version {loaded.manifest.version} carries no codebook:"
        " embeddings and TokenAdapt need one; ingest the pictures again or import a release"
    )


def load_tokenadapt(url: str) -> TokenAdapt:
    """TokenAdapt's networks from a `.safetensors` file on any store."""
    folder, _, name = url.rpartition("/")
    return TokenAdapt.load(open_store(folder or ".").read(name))


@lru_cache(maxsize=4)
def augmenter_for(request: StreamRequest) -> Augmenter:
    """The request's recipe with its networks, in evaluation mode."""
    loaded = load_manifest(open_store(request.root), request.dataset, request.version)
    spec = loaded.manifest.spec
    if spec is None:
        raise NotFoundError(f"dataset {request.dataset!r} does not describe its token grid")
    codebook = codebook_of(request.root, loaded)
    tokenadapt = load_tokenadapt(request.tokenadapt) if request.tokenadapt else None
    return Augmenter(request.recipe, spec, codebook.weight, tokenadapt).eval()


_building = threading.Lock()


def warm(request: StreamRequest) -> None:
    """Build what this process needs, once, even when several threads ask at the same time."""
    with _building:
        reader_for(request)
        plan_for(request)


def fetch_share(request: StreamRequest, step: int, rank: int, world: int) -> pa.Table:
    """The rows of `step` that `rank` of `world` gets, as stored: columns of `pack` and `label`.

    Rows that do not exist (the tail of an epoch) are there with row -1 and zeros, so that every
    share has the same shape.
    """
    warm(request)
    plan, reader = plan_for(request), reader_for(request)
    spans = [plan.span(step, slot) for slot in plan.rank_slots(rank, world)]
    rows = np.concatenate([span.rows for span in spans])
    shard, inside = plan.locate(rows)
    there = rows >= 0
    spec = reader.spec
    ids = np.zeros((len(rows), spec.grid_height, spec.grid_width), np.uint16)
    label = np.zeros(len(rows), np.int64)
    if there.any():
        ids[there], label[there] = reader.take(shard[there], inside[there])
    return pack(step, spans[0].epoch, rows, ids, label=label)


@torch.inference_mode()
def augment_share(request: StreamRequest, table: pa.Table) -> pa.Table:
    """One fetched share through the recipe: columns as `services.stream.batch.unpack` reads them."""
    step, epoch = position(table)
    rows = numbers(table, "row").astype(np.int64)
    ids = inputs_of(table)
    assert isinstance(ids, np.ndarray)
    draws = Draws(seed=request.order.seed, epoch=epoch, rows=rows)
    batch = augmenter_for(request)(
        torch.from_numpy(ids.astype(np.int64)),
        torch.from_numpy(numbers(table, "label").astype(np.int64)),
        draws,
        blocks=len(rows) // request.order.block_rows,
    )
    floating = batch.inputs.is_floating_point()
    return pack(
        step,
        epoch,
        rows,
        batch.inputs.to(torch.bfloat16) if floating else batch.inputs.numpy().astype(np.uint16),
        label=batch.label.numpy(),
        label_b=batch.label_b.numpy(),
        mix=batch.mix.numpy(),
    )
