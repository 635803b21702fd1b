"""A fetched share through its recipe. Knows torch, not Ray: actors, local threads and trainers that
augment on their own device all call it.

Random draws are keyed by the rows themselves, so the same share gives the same batch wherever and
however often it is augmented.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from functools import lru_cache

import torch

from services.augment.augmenter import Augmenter
from services.augment.coefficients import CoefficientAugmenter
from services.augment.masks import augment_masks
from services.augment.tokenadapt import TokenAdapt
from services.errors import NotFoundError
from services.plan.draws import Draws
from services.shards.manifest import LoadedManifest, load_manifest, read_asset
from services.shards.store import open_store, read_as
from services.stream.batch import StreamBatch, of_share
from services.stream.fetch import Share
from services.stream.request import StreamRequest
from services.tokens.codebook import Codebook
from services.tokens.dct import DCT
from services.tokens.devices import on_device
from services.tokens.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)


def codebook_of(root: str, loaded: LoadedManifest) -> Codebook:
    """The codebook that stands beside a dataset's shards, checked against its digest."""
    for asset in loaded.manifest.assets:
        if asset.kind == "codebook":
            return Codebook.from_bytes(read_asset(open_store(root), loaded.manifest.dataset, asset))
    raise NotFoundError(
        f"dataset {loaded.manifest.dataset!r} version {loaded.manifest.version} has no codebook:"
        " embeddings and TokenAdapt need one; ingest the pictures again or import a release"
    )


def dct_of(root: str, loaded: LoadedManifest) -> DCT:
    """The transform that a dataset's coefficients were made by, checked against its digest."""
    store, dataset = open_store(root), loaded.manifest.dataset
    for asset in loaded.manifest.assets:
        if asset.kind == "tokenizer":
            found = load_tokenizer(read_asset(store, dataset, asset))
            if isinstance(found, DCT):
                return found
    raise NotFoundError(
        f"dataset {dataset!r} version {loaded.manifest.version} has no DCT beside its shards: its"
        " coefficients would mean nothing; ingest the pictures again"
    )


@lru_cache(maxsize=4)
def augmenter_for(request: StreamRequest, device: str) -> Augmenter:
    """The request's recipe with its networks, in evaluation mode, built once a process.

    TokenAdapt weights for other grids are laid out for the recipe's; the weights stay what they
    are. Raises: InvalidInputError where recipe, dataset and TokenAdapt do not belong together.
    """
    first = request.rows.sources[0]  # all sources share one codebook
    loaded = load_manifest(open_store(first.root), first.dataset, first.version)
    if request.rows.coefficients:
        transform = dct_of(first.root, loaded)
        adapted: Augmenter = CoefficientAugmenter(request.recipe, loaded.spec, transform)
        return adapted.eval().to(device)
    codebook = codebook_of(first.root, loaded)
    tokenadapt = None
    if request.tokenadapt:
        grid = (loaded.spec.grid_height, loaded.spec.grid_width)
        # Networks are drawn before their weights are read: a trainer's generator must not notice.
        with torch.random.fork_rng(devices=[]):
            tokenadapt = _tokenadapt(request.tokenadapt, grid, request.recipe.crop)
    augmenter = Augmenter(
        request.recipe, loaded.spec, codebook.weight, tokenadapt, metric=codebook.metric
    )
    return augmenter.eval().to(device)


def _tokenadapt(url: str, grid: tuple[int, int], crop: tuple[int, int]) -> TokenAdapt:
    found = read_as(url, TokenAdapt.from_bytes)
    if (found.config.grid, found.config.out_grid) == (grid, crop):
        return found
    logger.info("TokenAdapt's positions are laid out anew for grid %s, crop %s", grid, crop)
    return found.resized(grid, crop)


def take_threads(number: int) -> None:
    """Let torch use so many threads for what the calling thread does, and no other one.

    By how many it sums decides the last bits of a sum: who takes an actor's place for a while takes
    as many.
    """
    others = torch.get_num_threads()  # asked first: torch sets a thread up when it first asks
    torch.set_num_threads(number)  # of this thread, but also of those that are not set up yet
    back = threading.Thread(target=torch.set_num_threads, args=(others,))
    back.start()
    back.join()


@torch.no_grad()
def augment_batch(request: StreamRequest, batch: StreamBatch, device: str) -> StreamBatch:
    """A batch of whole stored grids through the recipe; its inputs stay on `device`.

    Labels and weights stay in the memory of the host, where trainers check them: on a GPU nothing
    waits for the device.
    """
    ids = on_device(batch.inputs, device)
    if request.rows.coefficients:
        ids = ids.float()
    elif ids.device.type != "cpu":  # where 16-bit words cannot be indexed or compared
        ids = ids.long()
    augmenter = augmenter_for(request, device)
    draws = Draws(seed=request.rows.order.seed, epoch=batch.row_epochs, rows=batch.rows)
    blocks = len(batch) // request.rows.order.block_rows
    done = augmenter(ids, batch.label, draws, blocks=blocks)
    mask = batch.mask
    if mask is not None:
        adapt = augmenter.tokenadapt
        mask = augment_masks(
            request.recipe,
            on_device(mask, device),
            draws,
            blocks,
            grid=augmenter.grid,
            map_grid=None if adapt is None else adapt.map_grid,
        )
    return replace(
        batch,
        inputs=done.inputs.to(torch.bfloat16 if done.inputs.is_floating_point() else torch.uint16),
        label=done.label,
        label_b=done.label_b,
        mix=done.mix,
        mask=mask,
    )


def augment_share(request: StreamRequest, share: Share, device: str = "cpu") -> StreamBatch:
    """One fetched share, augmented on `device`, in the memory of the host.

    A recipe that only cuts has been applied by the fetch (`StreamRequest.fetched`).
    """
    if request.only_cuts:
        return of_share(share)
    began = time.perf_counter()
    batch = augment_batch(request, of_share(share), device)
    batch.inputs = batch.inputs.cpu().contiguous()
    if batch.mask is not None:
        batch.mask = batch.mask.cpu()
    spent = time.perf_counter() - began  # the copy to the host has waited for the device
    batch.account = replace(share.account, augment_seconds=spent)
    return batch
