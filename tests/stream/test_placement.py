"""Where rows are augmented changes no batch; recipes that cannot be applied are refused early."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.augment.config import MixConfig, RecipeConfig
from services.augment.tokenadapt import TokenAdapt, TokenAdaptConfig
from services.errors import InvalidInputError
from services.plan.epoch import OrderSpec
from services.shards.manifest import commit, load_manifest, put_asset
from services.shards.store import open_store
from services.shards.writer import build_split, write_shard
from services.stream.augmentation import augmenter_for
from services.stream.loader import Stream
from services.stream.request import RowsRequest, StreamRequest
from services.stream.sources import pinned
from services.tokens.codebook import Codebook
from services.types import UNLABELLED, TokenRows
from services.wire.seit import v1 as wire
from tests.stream.test_loader import same

GRID, CODES, CHANNELS = 4, 16, 5


@pytest.mark.parametrize("recipe", ["eval", "mtm", "finetune", "scratch"])
def test_the_consumer_augments_as_others_would(world: Any, recipe: str) -> None:
    request, place = world.request(recipe), {"rank": 1, "world": 3, "start": 4, "stop": 8}
    there = list(Stream(request, **place))
    here = Stream(request, **place, augment_on="cpu")
    batches = list(here)
    assert [batch.step for batch in batches] == [4, 5, 6, 7]  # the end of an epoch among them
    assert all(same(a, b) for a, b in zip(batches, there, strict=True))
    assert batches[0].inputs.dtype == there[0].inputs.dtype
    assert here.cursor(8) == Stream(request, **place).cursor(8)
    assert here.flow().rows == sum(int((b.rows >= 0).sum()) for b in batches)


def test_a_stream_leaves_the_trainers_generator_alone(world: Any) -> None:
    augmenter_for.cache_clear()
    before = torch.get_rng_state()
    next(iter(Stream(world.request("mtm"), augment_on="cpu")))
    assert torch.equal(torch.get_rng_state(), before)


def small(root: Path, *, labelled: bool, metric: str = "cosine") -> RowsRequest:
    """Twelve rows, of which one has no label unless `labelled`."""
    store = open_store(str(root))
    spec = wire.TokenSpec(
        grid_height=GRID, grid_width=GRID, codes=CODES, channels=CHANNELS, image_height=16,
        image_width=16,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    labels = np.arange(12) % 2
    labels[5] = labels[5] if labelled else UNLABELLED
    rows = TokenRows(
        rng.integers(0, CODES, (12, GRID, GRID)).astype(np.uint16),
        labels,
        [str(row) for row in range(12)],
        np.zeros(12, np.int64),
    )
    weight = torch.randn(CODES, CHANNELS, generator=torch.Generator().manual_seed(0))
    weight[0] = 1e-3  # nearest to nothing by angle, and by distance to whatever is small
    codebook = Codebook(weight, "euclidean" if metric == "euclidean" else "cosine")
    commit(
        store,
        wire.Manifest(
            dataset="small",
            spec=spec,
            tokenizer_kind="vqgan",
            assets=[put_asset(store, "small", "codebook", codebook.to_bytes())],
            classes=["a", "b"],
            splits=[
                build_split(
                    store, "small", "train", [write_shard(store, "small", "train", rows, spec)],
                    CODES,
                )
            ],
        ),
    )  # fmt: skip
    return RowsRequest(
        sources=(pinned(store, "small", "train"),),
        order=OrderSpec(0, 4, 4, lanes=1, window_shards=1),
        cache_dir=str(root / "cache"),
        cache_bytes=10**7,
    )


MIXES = RecipeConfig("mixes", (GRID, GRID), plain_mix=MixConfig(cutmix_alpha=1.0))


def test_soft_targets_need_labels(tmp_path: Path) -> None:
    rows = small(tmp_path / "some", labelled=False)
    with pytest.raises(InvalidInputError, match=r"small/train has rows without a label.*plain_mix"):
        Stream(StreamRequest(rows, MIXES))
    Stream(StreamRequest(rows, replace(MIXES, plain_mix=MixConfig())))
    Stream(StreamRequest(small(tmp_path / "all", labelled=True), MIXES))


def test_networks_that_do_not_belong_are_refused_before_anything_is_fetched(
    tmp_path: Path, world: Any
) -> None:
    request = world.request("mtm")
    with pytest.raises(InvalidInputError, match="no weights were given"):
        Stream(replace(request, tokenadapt=""))
    own = TokenAdapt.from_bytes(request.tokenadapt)
    other = TokenAdapt(own.config, codebook="0" * 32)
    (tmp_path / "other.safetensors").write_bytes(other.to_bytes())
    with pytest.raises(InvalidInputError, match="trained with codebook"):
        Stream(replace(request, tokenadapt=str(tmp_path / "other.safetensors")))


def test_weights_for_another_grid_are_laid_out_anew(tmp_path: Path, world: Any) -> None:
    request = world.request("mtm")
    own = TokenAdapt.from_bytes(request.tokenadapt)
    config: TokenAdaptConfig = replace(own.config, grid=(12, 12), out_grid=(10, 10))
    (tmp_path / "wide.safetensors").write_bytes(
        own.resized(config.grid, config.out_grid).to_bytes()
    )
    wide = replace(request, tokenadapt=str(tmp_path / "wide.safetensors"))
    assert all(
        same(a, b) for a, b in zip(Stream(wide, stop=2), Stream(request, stop=2), strict=True)
    )


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_codes_are_compared_as_the_tokenizer_does(tmp_path: Path, metric: str) -> None:
    rows = small(tmp_path, labelled=True, metric=metric)
    augmenter = augmenter_for(StreamRequest(rows, MIXES), "cpu")
    assert augmenter.metric == metric
    loaded = load_manifest(open_store(str(tmp_path)), "small")
    assert loaded.spec.codes == len(augmenter.codebook)
