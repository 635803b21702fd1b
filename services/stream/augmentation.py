"""A fetched share through its recipe. Knows torch, not Ray: actors and local threads both call it.

Random draws are keyed by the rows themselves, so the same share gives the same batch wherever and
however often it is augmented.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch

from services.augment.recipe import Augmenter
from services.augment.tokenadapt import TokenAdapt
from services.errors import NotFoundError
from services.plan.draws import Draws
from services.shards.manifest import LoadedManifest, load_manifest, read_asset
from services.shards.store import open_store, read_url
from services.stream.request import StreamRequest
from services.stream.table import inputs_of, numbers, pack, position
from services.tokens.codebook import Codebook


def codebook_of(root: str, loaded: LoadedManifest) -> Codebook:
    """The codebook that stands beside a dataset's shards, checked against its digest."""
    for asset in loaded.manifest.assets:
        if asset.kind == "codebook":
            return Codebook.from_bytes(read_asset(open_store(root), loaded.manifest.dataset, asset))
    raise NotFoundError(
        f"dataset {loaded.manifest.dataset!r} version {loaded.manifest.version} has no codebook:"
        " embeddings and TokenAdapt need one; ingest the pictures again or import a release"
    )


@lru_cache(maxsize=4)
def augmenter_for(request: StreamRequest, device: str = "cpu") -> Augmenter:
    """The request's recipe with its networks, in evaluation mode, built once a process."""
    rows = request.rows
    loaded = load_manifest(open_store(rows.root), rows.dataset, rows.version)
    codebook = codebook_of(rows.root, loaded)
    tokenadapt = None
    if request.tokenadapt:
        tokenadapt = TokenAdapt.from_bytes(read_url(request.tokenadapt))
    return Augmenter(request.recipe, loaded.spec, codebook.weight, tokenadapt).eval().to(device)


@torch.inference_mode()
def augment_share(request: StreamRequest, table: pa.Table, device: str = "cpu") -> pa.Table:
    """One fetched share, augmented: columns as `services.stream.batch.unpack` reads them."""
    step, epoch = position(table)
    rows = numbers(table, "row").astype(np.int64)
    ids, _ = inputs_of(table)
    batch = augmenter_for(request, device)(
        torch.from_numpy(ids.astype(np.int64)).to(device),
        torch.from_numpy(numbers(table, "label").astype(np.int64)).to(device),
        Draws(seed=request.rows.order.seed, epoch=epoch, rows=rows),
        blocks=len(rows) // request.rows.order.block_rows,
    )
    if batch.inputs.is_floating_point():
        dtype = "bfloat16"
        inputs = batch.inputs.to(torch.bfloat16).contiguous().view(torch.int16).cpu().numpy()
    else:
        dtype = "uint16"
        inputs = batch.inputs.cpu().numpy().astype(np.uint16)
    return pack(
        step,
        epoch,
        rows,
        inputs,
        dtype,
        label=batch.label.cpu().numpy(),
        label_b=batch.label_b.cpu().numpy(),
        mix=batch.mix.cpu().numpy(),
    )
