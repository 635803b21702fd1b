"""A shard that is damaged on storage: an end that names it, or a run without its rows alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.errors import IntegrityError, NotFoundError
from services.stream.batch import StreamBatch
from services.stream.loader import Stream
from services.stream.request import StreamRequest
from tests.stream.conftest import Small, World, write_small
from tests.stream.test_loader import same

COUNTS = [40, 7, 55, 31, 24]
STEPS = 14  # two epochs of 157 rows in steps of 24


@pytest.fixture
def own(world: World, tmp_path: Path) -> World:
    """The same world with datasets that a test may damage, and a cache of its own."""
    root = tmp_path / "own"
    tiny = write_small(root, "tiny", COUNTS, classes=[str(c) for c in range(5)])
    cars = write_small(root, "cars", [9, 11, 14], classes=["lorry"], seed=8)
    weights = (world.root / "tokenadapt.safetensors").read_bytes()
    (root / "tokenadapt.safetensors").write_bytes(weights)
    return replace(world, root=root, datasets={"tiny": tiny, "cars": cars}, cache=tmp_path / "c")


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]


def damage(own: World, small: Small, shard: int, how: Callable[[bytes], bytes] = flip) -> str:
    """Spoil a shard's file; its name."""
    path = small.shards[shard].path
    file = own.root / small.name / path
    file.write_bytes(how(file.read_bytes()))
    return f"{small.name}/{path}"


def rows_of(shard: int) -> set[int]:
    start = sum(COUNTS[:shard])
    return set(range(start, start + COUNTS[shard]))


def fresh(request: StreamRequest, cache: Path, **changes: Any) -> StreamRequest:
    """The same request on a node whose cache is empty."""
    return replace(request, rows=replace(request.rows, cache_dir=str(cache), **changes))


def check(whole: list[StreamBatch], found: list[StreamBatch], lost: set[int]) -> None:
    """That `found` differs from `whole` in the rows of `lost` alone, which are not there."""
    assert [batch.step for batch in found] == [batch.step for batch in whole]
    for before, after in zip(whole, found, strict=True):
        gone = np.isin(before.rows, list(lost))
        assert (after.rows == np.where(gone, -1, before.rows)).all()
        assert (after.row_epochs == before.row_epochs).all()
        assert after.weight.tolist() == (after.rows >= 0).astype(float).tolist()
        for name in ("inputs", "label", "label_b", "mix"):
            mine, theirs = getattr(after, name), getattr(before, name)
            assert mine.dtype == theirs.dtype
            kept = torch.from_numpy(~gone)
            assert torch.equal(mine.long()[kept], theirs.long()[kept])
        assert not after.inputs.long()[torch.from_numpy(after.rows < 0)].any()
        assert not after.label[torch.from_numpy(after.rows < 0)].any()


@pytest.mark.parametrize("how", [flip, lambda data: data[:-9], lambda data: b""])
def test_a_damaged_shard_ends_a_stream_by_name(own: World, how: Callable[[bytes], bytes]) -> None:
    name = damage(own, own.datasets["tiny"], 2, how)
    stream = Stream(own.request("crop"), stop=STEPS)
    with pytest.raises(IntegrityError, match=name):
        list(stream)
    assert stream.flow().state == "failed"
    assert stream.flow().quarantined == []


@pytest.mark.parametrize("recipe", ["crop", "eval"])
@pytest.mark.parametrize("shard", range(len(COUNTS)))
def test_without_it_every_other_row_comes_once_as_ever(
    own: World, tmp_path: Path, recipe: str, shard: int
) -> None:
    request = own.request(recipe)
    whole = list(Stream(request, stop=STEPS))
    name = damage(own, own.datasets["tiny"], shard)
    stream = Stream(fresh(request, tmp_path / "new", skip_damaged=True), stop=STEPS)
    found = list(stream)
    check(whole, found, rows_of(shard))
    others = Counter(set(range(sum(COUNTS))) - rows_of(shard))
    for epoch in (0, 1):
        rows = np.concatenate([batch.rows for batch in found if batch.epoch == epoch])
        assert Counter(rows[rows >= 0].tolist()) == others
    flow = stream.flow()
    assert (flow.quarantined, flow.state) == ([name], "finished")
    assert flow.rows == 2 * others.total()


@pytest.mark.parametrize("seed", range(4))
def test_several_damaged_shards_met_by_several_threads_at_once(
    own: World, tmp_path: Path, seed: int
) -> None:
    request = own.request("crop", order=replace(own.order, seed=seed))
    whole = list(Stream(request, stop=STEPS))
    gone = [0, 1, 3]
    names = [damage(own, own.datasets["tiny"], shard) for shard in gone]
    stream = Stream(fresh(request, tmp_path / "new", skip_damaged=True), stop=STEPS, prefetch=8)
    check(whole, list(stream), set.union(*map(rows_of, gone)))
    assert sorted(stream.flow().quarantined) == sorted(names)


def test_nothing_changes_where_nothing_is_damaged(own: World) -> None:
    request = own.request("finetune")
    whole = list(Stream(request, stop=STEPS))
    careful = fresh(request, Path(request.rows.cache_dir), skip_damaged=True)
    stream = Stream(careful, stop=STEPS)
    assert all(same(a, b) for a, b in zip(whole, stream, strict=True))
    assert stream.flow().quarantined == []


def test_a_shard_of_one_source_of_a_mixture(own: World, tmp_path: Path) -> None:
    request = own.request("crop", "tiny", "cars", weights=(2.0, 1.0))
    whole = list(Stream(request, stop=STEPS))
    name = damage(own, own.datasets["cars"], 1)
    stream = Stream(fresh(request, tmp_path / "new", skip_damaged=True), stop=STEPS)
    begin = sum(COUNTS) + 9
    check(whole, list(stream), set(range(begin, begin + 11)))
    assert stream.flow().quarantined == [name]


@pytest.mark.parametrize("recipe", ["mtm", "scratch"])
def test_a_recipe_that_pairs_rows_changes_no_block_that_lost_none(
    own: World, tmp_path: Path, recipe: str
) -> None:
    request = own.request(recipe)
    whole = list(Stream(request, stop=7))
    damage(own, own.datasets["tiny"], 3)
    found = list(Stream(fresh(request, tmp_path / "new", skip_damaged=True), stop=7))
    size, untouched = own.order.block_rows, 0
    for before, after in zip(whole, found, strict=True):
        for start in range(0, len(before), size):
            block = slice(start, start + size)
            if (after.rows[block] != before.rows[block]).any():
                continue
            untouched += 1
            for name in ("inputs", "label", "label_b", "mix"):
                assert torch.equal(getattr(after, name)[block], getattr(before, name)[block])
        there = torch.from_numpy(after.rows >= 0)
        assert torch.isfinite(after.inputs.float()[there]).all()
    assert untouched > 5


def test_a_missing_shard_is_not_a_damaged_one(own: World) -> None:
    path = own.datasets["tiny"].shards[2].path
    (own.root / "tiny" / path).unlink()
    with pytest.raises(NotFoundError, match=path):
        list(Stream(own.request("crop", skip_damaged=True), stop=STEPS))
