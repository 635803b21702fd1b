"""What a recipe does to rows of a dataset, decoded: before, each operation alone, all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from services.augment.augmenter import Augmenter
from services.augment.config import RecipeConfig
from services.augment.recipe import recipe_named
from services.augment.tokenadapt import TokenAdapt
from services.errors import InvalidInputError, NotFoundError
from services.gallery.operations import operations
from services.gallery.sheet import draw_sheet
from services.plan.draws import Draws, check_seed
from services.settings import load_settings
from services.shards.manifest import LoadedManifest, load_manifest, read_asset
from services.shards.reader import DatasetReader
from services.shards.store import Store, open_store, read_as
from services.stream.augmentation import codebook_of
from services.stream.sources import cache_at
from services.tokens.codebook import Codebook
from services.tokens.tokenizer import (
    TokenizerModel,
    load_published,
    load_tokenizer,
    resized,
    with_codebook,
)
from services.types import IntArray

MOST_ROWS = 64
"""Samples on one sheet: more could not be looked at."""

_DRAWS = 3  # of the whole recipe
_SAME = 1e-3  # distance of unit vectors below which two codes are one


@dataclass(frozen=True)
class GalleryRequest:
    """Which rows of which dataset, through which recipe.

    root: URL of the folder of datasets. recipe: a name or a JSON file (`recipe_named`).
    crop: side of the training grid in tokens; None for all of the stored grid.
    tokenizer, tokenadapt: files or URLs; "" for the dataset's own tokenizer, and for no TokenAdapt.
    rows: numbers in the split; none for `count` rows spread over it.
    """

    root: str
    dataset: str
    recipe: str
    split: str = "train"
    version: int | None = None
    crop: int | None = None
    tokenizer: str = ""
    tokenadapt: str = ""
    rows: Sequence[int] = ()
    count: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        wanted = len(self.rows) or self.count
        if not 1 <= wanted <= MOST_ROWS:
            raise InvalidInputError(
                f"{wanted} rows do not make a sheet: valid are 1 to {MOST_ROWS}, of which each"
                " becomes a line of pictures"
            )
        check_seed("seed", self.seed)


@torch.inference_mode()
def draw_recipe(request: GalleryRequest, path: Path) -> RecipeConfig:
    """Write the sheet as a PNG file; the recipe that it shows.

    Raises: NotFoundError, InvalidInputError for what is not there or does not fit together;
    nothing is written then.
    """
    root = open_store(request.root)
    loaded = load_manifest(root, request.dataset, request.version)
    spec = loaded.spec
    grid = (spec.grid_height, spec.grid_width)
    crop = grid if request.crop is None else (request.crop, request.crop)
    config = recipe_named(request.recipe, spec, crop)
    if not request.tokenadapt:
        config = replace(config, adapt=replace(config.adapt, share=0.0))
    codebook = codebook_of(root.url, loaded)
    decode = _Decoder(_tokenizer(request.tokenizer, root, loaded, codebook))
    adapt = None
    if request.tokenadapt:
        weights = read_as(request.tokenadapt, TokenAdapt.from_bytes)
        adapt = weights.resized(grid, config.crop).eval()

    rows, ids, labels = _read(request, root, loaded)
    columns = [("stored", decode(ids))]

    def show(title: str, alone: RecipeConfig, epoch: int, order: Tensor) -> None:
        augment = Augmenter(alone, spec, codebook.weight, adapt, metric=codebook.metric).eval()
        draws = Draws(request.seed, epoch, rows[order.numpy()])
        made = augment(ids[order], labels[order], draws, blocks=1).inputs
        columns.append((title, decode(made[torch.argsort(order)])))

    every = torch.arange(len(rows))
    for title, alone in operations(config, grid):
        show(title, alone, 0, every)
    for draw in range(_DRAWS):
        # Which path a row takes depends on its place in the block: each row takes both.
        order = every.roll(draw * (len(rows) // 2))
        show(f"{config.name}\ndraw {draw + 1}", replace(config, output="ids"), draw, order)
    draw_sheet(columns, path, [f"row {row}" for row in rows.tolist()])
    return config


class _Decoder:
    """Pictures of grids of ids, whatever their size; a tokenizer for each size is made once."""

    def __init__(self, tokenizer: TokenizerModel) -> None:
        spec = tokenizer.spec
        self._patch = (spec.image_height // spec.grid_height, spec.image_width // spec.grid_width)
        self._by_grid = {(spec.grid_height, spec.grid_width): tokenizer.eval()}
        self._first = tokenizer

    def __call__(self, ids_Nhw: Tensor) -> Tensor:
        grid = (ids_Nhw.shape[1], ids_Nhw.shape[2])
        if grid not in self._by_grid:
            size = (grid[0] * self._patch[0], grid[1] * self._patch[1])
            self._by_grid[grid] = resized(self._first, size).eval()
        return torch.cat(
            [self._by_grid[grid].decode(one) for one in torch.split(ids_Nhw.long(), 8)]
        )


def _tokenizer(
    source: str, root: Store, loaded: LoadedManifest, codebook: Codebook
) -> TokenizerModel:
    """The tokenizer that the dataset's tokens belong to, with its codebook.

    A published checkpoint is told by its ending: ours are .safetensors.
    """
    manifest = loaded.manifest
    if source and not source.endswith(".safetensors"):
        kind = manifest.tokenizer_kind if manifest.tokenizer_kind == "vqgan" else "vitvqgan"
        model = load_published(source, kind)
    elif source:
        model = read_as(source, load_tokenizer)
    else:
        asset = next((asset for asset in manifest.assets if asset.kind == "tokenizer"), None)
        if asset is None:
            raise NotFoundError(
                f"dataset {manifest.dataset!r} version {manifest.version} has no tokenizer beside"
                " its shards, so its tokens cannot be shown: name its file (--tokenizer)"
            )
        model = load_tokenizer(read_asset(root, manifest.dataset, asset))
    _check_codes(model.codebook, codebook, source or "the dataset's tokenizer")
    spec = loaded.spec
    model = with_codebook(model, codebook)
    patch = model.spec.image_height // model.spec.grid_height
    size = (spec.grid_height * patch, spec.grid_width * patch)
    if (model.spec.grid_height, model.spec.grid_width) != (spec.grid_height, spec.grid_width):
        model = resized(model, size)
    return model


def _check_codes(own: Codebook, wanted: Codebook, name: str) -> None:
    """Each code of the dataset must be one of the tokenizer's: else its decoder shows nothing."""
    far = torch.tensor(torch.inf)
    if own.channels == wanted.channels:
        ours, theirs = own.weight.float(), wanted.weight.float()
        if wanted.metric == "cosine":
            ours, theirs = F.normalize(ours, dim=1), F.normalize(theirs, dim=1)
        far = torch.cdist(theirs, ours).amin(1).max()
    if not far <= _SAME:
        raise InvalidInputError(
            f"{name} has {own.codes} codes of {own.channels} channels, and the dataset's"
            f" {wanted.codes} codes of {wanted.channels} are not among them (the farthest is"
            f" {float(far):.3g} away): its tokens were made by another tokenizer; give that one"
        )


def _read(
    request: GalleryRequest, root: Store, loaded: LoadedManifest
) -> tuple[IntArray, Tensor, Tensor]:
    """Row numbers (N,), ids (N, H, W) int64, labels (N,) int64."""
    settings = load_settings()
    reader = DatasetReader(
        root,
        request.dataset,
        split=request.split,
        cache=cache_at(str(settings.cache_dir), settings.cache_bytes),
        version=loaded.manifest.version,
    )
    total = len(reader)
    if request.rows:
        rows = np.array(request.rows, np.int64)
    else:
        rows = np.unique(np.linspace(0, total - 1, min(request.count, total)).round().astype(int))
    if not len(rows) or not 0 <= rows.min() <= rows.max() < total:
        raise InvalidInputError(
            f"rows {rows.tolist()} are asked of split {request.split!r}, which has rows 0 to"
            f" {total - 1}: nothing was drawn; name rows of that range"
        )
    ends = np.cumsum(reader.shard_rows)
    shards = np.searchsorted(ends, rows, side="right")
    ids, labels = reader.take(shards, rows - (ends - reader.shard_rows)[shards])
    return rows, torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(labels)
