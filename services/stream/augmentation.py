"""A fetched share through its recipe. Knows torch, not Ray: actors and local threads both call it.

Random draws are keyed by the rows themselves, so the same share gives the same batch wherever and
however often it is augmented.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import lru_cache

import torch

from services.augment.masks import augment_masks
from services.augment.recipe import Augmenter
from services.augment.tokenadapt import TokenAdapt
from services.errors import NotFoundError
from services.plan.draws import Draws
from services.shards.manifest import LoadedManifest, load_manifest, read_asset
from services.shards.store import open_store, read_url
from services.stream.batch import StreamBatch, of_share
from services.stream.fetch import Share
from services.stream.request import StreamRequest
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
    first = request.rows.sources[0]  # all sources share one codebook
    loaded = load_manifest(open_store(first.root), first.dataset, first.version)
    codebook = codebook_of(first.root, loaded)
    tokenadapt = None
    if request.tokenadapt:
        grid, crop = (loaded.spec.grid_height, loaded.spec.grid_width), request.recipe.crop
        tokenadapt = TokenAdapt.from_bytes(read_url(request.tokenadapt)).resized(grid, crop)
    return Augmenter(request.recipe, loaded.spec, codebook.weight, tokenadapt).eval().to(device)


@torch.no_grad()
def augment_share(request: StreamRequest, share: Share, device: str = "cpu") -> StreamBatch:
    """One fetched share, augmented on `device`, in the memory of the host.

    A recipe that only cuts has been applied by the fetch (`StreamRequest.fetched`).
    """
    if request.only_cuts:
        return of_share(share)
    began = time.perf_counter()
    ids = torch.from_numpy(share.ids).to(device)
    if ids.device.type != "cpu":  # where 16-bit words cannot be indexed or compared
        ids = ids.long()
    augmenter = augmenter_for(request, device)
    draws = Draws(seed=request.rows.order.seed, epoch=share.row_epochs, rows=share.rows)
    blocks = len(share.rows) // request.rows.order.block_rows
    done = augmenter(ids, torch.from_numpy(share.label).to(device), draws, blocks=blocks)
    mask = None
    if share.masks is not None:
        adapt = augmenter.tokenadapt
        mask = augment_masks(
            request.recipe,
            torch.from_numpy(share.masks).to(device),
            draws,
            blocks,
            grid=augmenter.grid,
            map_grid=None if adapt is None else adapt.map_grid,
        ).cpu()
    wire_type = torch.bfloat16 if done.inputs.is_floating_point() else torch.uint16
    batch = replace(
        of_share(share),
        inputs=done.inputs.to(wire_type).cpu().contiguous(),
        label=done.label.cpu(),
        label_b=done.label_b.cpu(),
        mix=done.mix.cpu(),
        mask=mask,
    )
    spent = time.perf_counter() - began  # the copies to the host have waited for the device
    batch.account = replace(share.account, augment_seconds=spent)
    return batch
