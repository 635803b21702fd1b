"""A small real dataset: shards, codebook, TokenAdapt's weights, all on the local file system."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.augment.config import RecipeConfig
from services.augment.recipe import RECIPES
from services.augment.tokenadapt import TokenAdapt, TokenAdaptConfig
from services.plan.epoch import OrderSpec
from services.shards.manifest import commit, put_asset
from services.shards.store import open_store
from services.shards.writer import build_split, write_shard
from services.stream.request import RowsRequest, SourceRequest, StreamRequest
from services.tokens.codebook import Codebook
from services.types import TokenRows
from services.wire.seit import v1 as wire

GRID, CODES, CHANNELS, CROP = 8, 48, 8, (6, 6)


@dataclass(frozen=True)
class World:
    """The dataset, its rows in split order, and ways to ask for them."""

    root: Path
    ids: np.ndarray
    labels: np.ndarray
    digest: str
    cache: Path

    def rows(self, **changes: object) -> RowsRequest:
        order = OrderSpec(seed=5, global_batch_rows=24, block_rows=4, lanes=2, window_shards=2)
        request = RowsRequest(
            sources=(SourceRequest(str(self.root), "tiny", 1, self.digest, "train"),),
            order=order,
            cache_dir=str(self.cache),
            cache_bytes=10**8,
        )
        return replace(request, **changes)  # type: ignore[arg-type]

    def recipe(self, name: str) -> RecipeConfig:
        return RECIPES[name](wire.TokenSpec(**SPEC), CROP)

    def request(self, name: str = "mtm", **changes: object) -> StreamRequest:
        recipe = self.recipe(name)
        weights = str(self.root / "tokenadapt.safetensors") if recipe.adapt.share else ""
        return StreamRequest(self.rows(**changes), recipe, weights)


SPEC = {
    "grid_height": GRID,
    "grid_width": GRID,
    "codes": CODES,
    "channels": CHANNELS,
    "image_height": 32,
    "image_width": 32,
}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("root")
    store, spec = open_store(str(root)), wire.TokenSpec(**SPEC)
    rng = np.random.default_rng(3)
    counts = [40, 7, 55, 31, 24]
    results, ids, labels = [], [], []
    for shard, count in enumerate(counts):
        rows = TokenRows(
            ids=rng.integers(0, CODES, (count, GRID, GRID)).astype(np.uint16),
            labels=rng.integers(0, 5, count),
            keys=[f"{shard}/{row}" for row in range(count)],
            source_bytes=np.full(count, 900, np.int64),
        )
        results.append(write_shard(store, "tiny", "train", rows, spec))
        ids.append(rows.ids)
        labels.append(rows.labels)
    generator = torch.Generator().manual_seed(1)
    codebook = Codebook(torch.randn(CODES, CHANNELS, generator=generator))
    committed = commit(
        store,
        wire.Manifest(
            dataset="tiny",
            spec=spec,
            tokenizer_kind="vitvqgan",
            assets=[put_asset(store, "tiny", "codebook", codebook.to_bytes())],
            classes=[str(c) for c in range(5)],
            splits=[build_split(store, "tiny", "train", results, CODES)],
        ),
    )
    config = TokenAdaptConfig(
        grid=(GRID, GRID), channels=CHANNELS, codes=CODES, dim=16, heads=2, mlp=32, out_grid=CROP
    )
    torch.manual_seed(0)
    (root / "tokenadapt.safetensors").write_bytes(TokenAdapt(config).to_bytes())
    return World(
        root,
        np.concatenate(ids),
        np.concatenate(labels),
        committed.digest,
        tmp_path_factory.mktemp("cache"),
    )
