"""Small real datasets: shards, codebook, TokenAdapt's weights, all on the local file system."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from services.augment.config import CropConfig, RecipeConfig
from services.augment.recipe import RECIPES
from services.augment.tokenadapt import TokenAdapt, TokenAdaptConfig
from services.plan.epoch import OrderSpec
from services.shards.manifest import commit, put_asset
from services.shards.store import open_store
from services.shards.writer import build_split, write_shard
from services.stream.request import RowsRequest, SourceRequest, StreamRequest
from services.tokens.codebook import Codebook
from services.tokens.tokenizer import save_tokenizer
from services.tokens.vitvqgan import ViTSize, ViTVQGAN, ViTVQGANConfig
from services.types import TokenRows
from services.wire.seit import v1 as wire

GRID, CODES, CHANNELS, CROP = 8, 48, 8, (6, 6)

SPEC = {
    "grid_height": GRID,
    "grid_width": GRID,
    "codes": CODES,
    "channels": CHANNELS,
    "image_height": 32,
    "image_width": 32,
}


@dataclass(frozen=True)
class Small:
    """A dataset's train split as it was written: rows in split order, labels by its own classes."""

    name: str
    ids: np.ndarray
    labels: np.ndarray
    classes: Sequence[str]
    shards: Sequence[wire.Shard]
    digest: str


def codebook_bytes(seed: int, channels: int = CHANNELS) -> bytes:
    """A codebook as it stands beside shards; another seed is another codebook."""
    generator = torch.Generator().manual_seed(seed)
    return Codebook(torch.randn(CODES, channels, generator=generator)).to_bytes()


def write_small(
    root: Path | str,
    name: str,
    counts: Sequence[int],
    *,
    classes: Sequence[str],
    seed: int = 3,
    codebook: bytes | None = None,
    spec: dict[str, int] = SPEC,
) -> Small:
    """Commit the next version of a dataset, with shards of `counts` rows."""
    store, form = open_store(str(root)), wire.TokenSpec(**spec)
    rng = np.random.default_rng(seed)
    results, ids, labels = [], [], []
    for shard, count in enumerate(counts):
        shape = (count, form.grid_height, form.grid_width)
        rows = TokenRows(
            ids=rng.integers(0, CODES, shape).astype(np.uint16),
            labels=rng.integers(0, len(classes), count),
            keys=[f"{shard}/{row}" for row in range(count)],
            source_bytes=np.full(count, 900, np.int64),
        )
        results.append(write_shard(store, name, "train", rows, form))
        ids.append(rows.ids)
        labels.append(rows.labels)
    data = codebook_bytes(1) if codebook is None else codebook
    split = build_split(store, name, "train", results, CODES)
    committed = commit(
        store,
        wire.Manifest(
            dataset=name,
            spec=form,
            tokenizer_kind="vitvqgan",
            assets=[put_asset(store, name, "codebook", data)],
            classes=list(classes),
            splits=[split],
        ),
    )
    digest = committed.digest
    return Small(name, np.concatenate(ids), np.concatenate(labels), classes, split.shards, digest)


@dataclass(frozen=True)
class World:
    """The datasets, the first one's rows in split order, and ways to ask for them."""

    root: Path
    datasets: dict[str, Small]
    cache: Path
    order: OrderSpec = field(
        default_factory=lambda: OrderSpec(
            seed=5, global_batch_rows=24, block_rows=4, lanes=2, window_shards=2
        )
    )

    @property
    def ids(self) -> np.ndarray:
        return self.datasets["tiny"].ids

    @property
    def labels(self) -> np.ndarray:
        return self.datasets["tiny"].labels

    def source(self, name: str, version: int = 1) -> SourceRequest:
        return SourceRequest(str(self.root), name, version, self.datasets[name].digest, "train")

    def rows(self, *names: str, **changes: object) -> RowsRequest:
        request = RowsRequest(
            sources=tuple(self.source(name) for name in names or ("tiny",)),
            order=self.order,
            cache_dir=str(self.cache),
            cache_bytes=10**8,
        )
        return replace(request, **changes)  # type: ignore[arg-type]

    def recipe(self, name: str) -> RecipeConfig:
        if name == "crop":
            return RecipeConfig("crop", CROP, plain_crop=CropConfig(kind="random"))
        return RECIPES[name](wire.TokenSpec(**SPEC), CROP)

    def request(self, name: str = "mtm", *names: str, **changes: object) -> StreamRequest:
        recipe = self.recipe(name)
        weights = str(self.root / "tokenadapt.safetensors") if recipe.adapt.share else ""
        return StreamRequest(self.rows(*names, **changes), recipe, weights)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("root")
    tiny = [str(number) for number in range(5)]
    listed = [
        write_small(root, "tiny", [40, 7, 55, 31, 24], classes=tiny),
        write_small(root, "birds", [25, 38], classes=["wren", "3", "0"], seed=7),
        write_small(root, "cars", [9, 11, 14], classes=["lorry"], seed=8),
    ]
    config = TokenAdaptConfig(
        grid=(GRID, GRID), channels=CHANNELS, codes=CODES, dim=16, heads=2, mlp=32, out_grid=CROP
    )
    torch.manual_seed(0)
    (root / "tokenadapt.safetensors").write_bytes(TokenAdapt(config).to_bytes())
    datasets = {small.name: small for small in listed}
    return World(root, datasets, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One node of three CPUs for the tests of a module."""
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small untrained tokenizer: pictures of 16 x 16, grids of 4 x 4, 16 codes."""
    torch.manual_seed(0)
    size = ViTSize(16, 1, 1, 32)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.safetensors"
    path.write_bytes(save_tokenizer(ViTVQGAN(ViTVQGANConfig((16, 16), 4, size, size, 12, 8, 16))))
    return path
