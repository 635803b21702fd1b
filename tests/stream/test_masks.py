"""Masks travel with their rows: without Ray, through tables, from damaged and unmasked data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.augment.config import RecipeConfig
from services.augment.recipe import RECIPES
from services.augment.tokenadapt import TokenAdapt, TokenAdaptConfig
from services.errors import IntegrityError, InvalidInputError
from services.plan.epoch import OrderSpec
from services.plan.subset import SubsetSpec
from services.shards.store import open_store
from services.stream.batch import StreamBatch, pack_batch, unpack_batch
from services.stream.fetch import fetch_share
from services.stream.loader import Stream
from services.stream.request import RowsRequest, SourceRequest, StreamRequest
from services.stream.table import pack_share, unpack_share
from services.types import IGNORED
from tests.small_masks import CLASSES, PIXELS, SPEC, Masked, write_masked

CROP = (6, 6)


@dataclass(frozen=True)
class MaskedWorld:
    root: Path
    scenes: Masked

    def rows(self, cache: str = "cache", split: str = "train", **changes: object) -> RowsRequest:
        committed = self.scenes.committed
        source = SourceRequest(str(self.root), "scenes", 1, committed.digest, split)
        request = RowsRequest(
            sources=(source,),
            order=OrderSpec(seed=5, global_batch_rows=12, block_rows=4, lanes=1, window_shards=2),
            cache_dir=str(self.root / cache),
            cache_bytes=10**8,
            masks=True,
        )
        return replace(request, **changes)  # type: ignore[arg-type]

    def request(self, recipe: str = "segment", **changes: object) -> StreamRequest:
        config = RECIPES[recipe](SPEC, CROP)
        weights = str(self.root / "tokenadapt.safetensors") if config.adapt.share else ""
        return StreamRequest(self.rows(**changes), config, weights)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> MaskedWorld:
    root = tmp_path_factory.mktemp("root")
    scenes = write_masked(open_store(str(root)))
    torch.manual_seed(0)
    # Weights for other grids than the dataset's: they are laid out for it.
    config = TokenAdaptConfig((5, 5), (4, 4), channels=8, codes=32, dim=16, heads=2, mlp=32)
    (root / "tokenadapt.safetensors").write_bytes(TokenAdapt(config).to_bytes())
    return MaskedWorld(root, scenes)


def pixels(ids: np.ndarray) -> np.ndarray:
    """The class that each pixel of a grid has, where it has one (small_masks)."""
    return (ids % len(CLASSES)).repeat(PIXELS, 1).repeat(PIXELS, 2)


def test_each_row_comes_with_its_own_mask_cut_as_it_is(masked: MaskedWorld) -> None:
    scenes, seen = masked.scenes, 0
    for recipe in (RECIPES["eval"](SPEC, CROP), replace(RECIPES["segment"](SPEC, CROP))):
        recipe = replace(recipe, adapt=replace(recipe.adapt, share=0.0))
        for batch in Stream(StreamRequest(masked.rows(), recipe), stop=6):
            assert batch.mask is not None
            assert batch.mask.dtype == torch.uint8
            mask, ids = batch.mask.numpy(), batch.inputs.numpy().astype(np.int64)
            assert mask.shape[1:] == (CROP[0] * PIXELS, CROP[1] * PIXELS)
            there = batch.rows >= 0
            assert (mask[~there] == IGNORED).all()
            known = mask[there] != IGNORED
            assert (mask[there] == pixels(ids[there]))[known].all()
            seen += int(there.sum())
            if recipe.name == "eval":
                whole = scenes.masks[batch.rows[there]][:, 3:21, 3:21]
                assert (mask[there] == whole).all()
    assert seen == 4 * len(scenes.ids)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_share_out_the_same_masks(masked: MaskedWorld, workers: int) -> None:
    request = masked.request()
    whole = list(Stream(request, stop=4))
    ranks = [list(Stream(request, rank=r, world=workers, stop=4)) for r in range(workers)]
    moved = 0
    for step, batch in enumerate(whole):
        parts = [rank[step].mask for rank in ranks]
        assert batch.mask is not None
        assert torch.equal(torch.cat([part for part in parts if part is not None]), batch.mask)
        moved += int((batch.mask.numpy() == IGNORED).mean(axis=(1, 2)).max() > 0.15)
    assert moved  # TokenAdapt's path turned some of them


def test_masks_survive_their_tables(masked: MaskedWorld) -> None:
    share = fetch_share(masked.rows(), 0, 0, 1)
    found = unpack_share(pack_share(share))
    assert found.masks is not None
    assert share.masks is not None
    assert (found.masks == share.masks).all()
    assert found.masks.flags.writeable
    cut = unpack_batch(pack_share(share))
    assert cut.mask is not None
    assert (cut.mask.numpy() == share.masks).all()
    batch: StreamBatch = next(iter(Stream(masked.request(), stop=1)))
    again = unpack_batch(pack_batch(batch))
    assert again.mask is not None
    assert batch.mask is not None
    assert torch.equal(again.mask, batch.mask)
    assert again.to(torch.device("cpu")).mask is again.mask or torch.equal(again.mask, batch.mask)


def test_rows_without_masks_are_refused_when_the_stream_is_opened(tmp_path: Path) -> None:
    bare = write_masked(open_store(str(tmp_path)), masked=False)
    world = MaskedWorld(tmp_path, bare)
    with pytest.raises(InvalidInputError, match=r"32 of 32 rows have no mask.*--masks"):
        Stream(world.request("eval"))
    assert next(iter(Stream(world.request("eval", masks=False)))).mask is None


def test_a_class_without_a_name_is_found_where_masks_are_read(tmp_path: Path) -> None:
    scenes = write_masked(open_store(str(tmp_path)), classes=CLASSES[:-1])
    world = MaskedWorld(tmp_path, scenes)
    with pytest.raises(InvalidInputError, match=r"train, row \d.* class 2, .*0\.\.1 and 255"):
        next(iter(Stream(world.request("eval"))))


def test_a_recipe_that_masks_cannot_follow_is_refused(masked: MaskedWorld) -> None:
    for recipe in ("finetune", "scratch"):
        with pytest.raises(InvalidInputError, match="would no longer fit"):
            StreamRequest(masked.rows(), RECIPES[recipe](SPEC, CROP))


def test_a_damaged_file_of_masks_ends_the_stream_or_is_left_out(tmp_path: Path) -> None:
    world = MaskedWorld(tmp_path, write_masked(open_store(str(tmp_path))))
    shard = world.scenes.committed.manifest.splits[0].shards[1]
    file = tmp_path / "scenes" / shard.columns[0].path
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    recipe: RecipeConfig = RECIPES["eval"](SPEC, CROP)
    with pytest.raises(IntegrityError, match=shard.columns[0].path):
        list(Stream(StreamRequest(world.rows("first"), recipe)))
    left = list(Stream(StreamRequest(world.rows("second", skip_damaged=True), recipe)))
    rows = np.concatenate([batch.rows for batch in left])
    assert set(rows[rows >= 0].tolist()) == {*range(9), *range(25, 32)}  # those of shard 1 are gone
    for batch in left:
        assert batch.mask is not None
        assert (batch.mask.numpy()[batch.rows < 0] == IGNORED).all()
        assert batch.weight.tolist() == (batch.rows >= 0).astype(float).tolist()


def test_the_masks_of_a_subset_are_those_of_its_own_rows(masked: MaskedWorld) -> None:
    whole = masked.rows()
    source = replace(whole.sources[0], subset=SubsetSpec(rows=9, seed=3))
    recipe = RECIPES["eval"](SPEC, CROP)
    seen = set()
    for batch in Stream(StreamRequest(replace(whole, sources=(source,)), recipe), stop=6):
        assert batch.mask is not None
        mask, ids = batch.mask.numpy(), batch.inputs.numpy().astype(np.int64)
        there = batch.rows >= 0
        known = mask[there] != IGNORED
        assert known.any()
        assert (mask[there] == pixels(ids[there]))[known].all()
        seen |= {row.tobytes() for row in ids[there]}
    assert 1 < len(seen) <= 9


def test_the_consumers_own_process_moves_masks_too(masked: MaskedWorld) -> None:
    request = masked.request()
    for there, here in zip(
        Stream(request, stop=4), Stream(request, stop=4, augment_on="cpu"), strict=True
    ):
        assert there.mask is not None
        assert here.mask is not None
        assert torch.equal(there.inputs, here.inputs)
        assert torch.equal(there.mask, here.mask)
