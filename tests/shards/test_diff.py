"""What changed between two manifests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from services.shards.diff import CountDiff, ShardsDiff, ValueDiff, diff_manifests
from services.shards.manifest import LoadedManifest, commit, extend, put_asset
from services.shards.store import Store
from services.shards.writer import ShardResult, build_split, write_shard
from services.types import TokenRows
from services.wire.seit import v1 as wire

Make = Callable[[int, int], TokenRows]


@pytest.fixture
def write(root: Store, spec: wire.TokenSpec, make_rows: Make) -> Callable[[int, int], ShardResult]:
    """(rows, seed) -> a written shard."""
    return lambda count, seed: write_shard(root, "ds", "train", make_rows(count, seed), spec)


def manifest_of(spec: wire.TokenSpec, *splits: wire.Split) -> wire.Manifest:
    return wire.Manifest(
        dataset="ds", spec=replace(spec), tokenizer_kind="release", splits=list(splits), version=1
    )


def test_an_append_adds_and_shares(
    root: Store, spec: wire.TokenSpec, write: Callable[[int, int], ShardResult], make_rows: Make
) -> None:
    first = commit(root, manifest_of(spec, build_split(root, "ds", "train", [write(20, 1)], 391)))
    added = [write(30, 2), write(10, 3)]
    more = [
        build_split(root, "ds", "train", added, 391),
        build_split(root, "ds", "validation", [write(5, 4)], 391),
    ]
    second = commit(root, extend(root, first, more, "more"))
    diff = diff_manifests(first.manifest, second.manifest)
    assert (diff.before, diff.after, diff.values, diff.classes, diff.assets) == (1, 2, (), (), ())
    assert not diff.same_content
    train, validation = diff.splits
    assert (train.name, train.rows_before, train.rows_after, train.moved) == ("train", 20, 60, 0)
    old = first.manifest.splits[0].shards[0]
    assert train.shared == ShardsDiff(1, 20, old.bytes)
    assert train.added == ShardsDiff(2, 40, sum(one.shard.bytes for one in added))
    assert train.removed == ShardsDiff(0, 0, 0)
    assert (validation.rows_before, validation.rows_after) == (0, 5)
    assert validation.code_shift == 1.0
    counts = np.bincount(np.concatenate([make_rows(30, 2).labels, make_rows(10, 3).labels]) + 1)
    assert {one.value: one.after - one.before for one in train.labels} == {
        label - 1: count for label, count in enumerate(counts.tolist()) if count
    }
    assert sum(one.after - one.before for one in train.codes) == 40 * 24
    assert [one.value for one in train.codes] == sorted(one.value for one in train.codes)
    assert 0 < train.code_shift < 1


def test_backwards_is_the_mirror_image(
    root: Store, spec: wire.TokenSpec, write: Callable[[int, int], ShardResult]
) -> None:
    shards = [write(20, seed) for seed in range(4)]
    before = manifest_of(spec, build_split(root, "ds", "train", shards[:3], 391))
    after = manifest_of(spec, build_split(root, "ds", "train", shards[2:], 391))
    (there,), (back,) = (
        diff_manifests(*pair).splits for pair in ((before, after), (after, before))
    )
    assert (there.added, there.removed) == (back.removed, back.added)
    assert (there.shared, there.moved) == (back.shared, back.moved)
    assert there.moved == 1
    mirrored = tuple(CountDiff(one.value, one.after, one.before) for one in back.codes)
    assert there.codes == mirrored
    assert there.code_shift == pytest.approx(back.code_shift)


def test_another_order_moves_rows_but_adds_none(
    root: Store, spec: wire.TokenSpec, write: Callable[[int, int], ShardResult]
) -> None:
    shards = [write(20, seed) for seed in range(3)]
    before = manifest_of(spec, build_split(root, "ds", "train", shards, 391))
    after = manifest_of(spec, build_split(root, "ds", "train", shards[::-1], 391))
    diff = diff_manifests(before, after)
    (split,) = diff.splits
    assert (split.added.shards, split.removed.shards, split.shared.shards) == (0, 0, 3)
    assert split.moved == 2  # the one in the middle stays where it is
    assert (split.labels, split.codes, split.code_shift) == ((), (), 0.0)
    assert not diff.same_content
    assert diff_manifests(before, before).same_content


def test_a_shard_that_stands_twice_counts_twice(
    root: Store, spec: wire.TokenSpec, write: Callable[[int, int], ShardResult]
) -> None:
    shard = write(20, 1)
    before = manifest_of(spec, build_split(root, "ds", "train", [shard], 391))
    after = manifest_of(spec, build_split(root, "ds", "train", [shard, shard], 391))
    (split,) = diff_manifests(before, after).splits
    assert split.added == ShardsDiff(1, 20, shard.shard.bytes)
    assert (split.shared.shards, split.moved) == (1, 0)


def test_everything_else_is_compared(
    root: Store, spec: wire.TokenSpec, write: Callable[[int, int], ShardResult]
) -> None:
    splits = [build_split(root, "ds", "train", [write(20, 1)], 391)]
    before = manifest_of(spec, *splits)
    before.classes = ["ant", "bee", "cat"]
    before.assets = [put_asset(root, "ds", "codebook", b"one")]
    after = manifest_of(spec)
    after.spec = replace(spec, codes=64, image_width=64)
    after.tokenizer_kind = "vitvqgan"
    after.classes = ["ant", "cat"]
    after.assets = [put_asset(root, "ds", kind, b"two") for kind in ("codebook", "tokenizer")]
    after.skipped = [wire.Skipped(path="x.png", reason="no picture")]
    diff = diff_manifests(before, after)
    assert diff.values == (
        ValueDiff("codes", "391", "64"),
        ValueDiff("image", "32x48", "32x64"),
        ValueDiff("tokenizer", "release", "vitvqgan"),
        ValueDiff("skipped pictures", "0", "1"),
    )
    assert diff.classes == (ValueDiff("1", "bee", "cat"), ValueDiff("2", "cat", "none"))
    digest = after.assets[0].xxh3
    assert diff.assets == (
        ValueDiff("codebook", before.assets[0].xxh3, digest),
        ValueDiff("tokenizer", "none", digest),
    )
    (train,) = diff.splits
    assert (train.rows_before, train.rows_after, train.removed.shards) == (20, 0, 1)


def test_version_numbers_and_words_are_no_difference(
    root: Store, spec: wire.TokenSpec, write: Callable[[int, int], ShardResult]
) -> None:
    manifest = manifest_of(spec, build_split(root, "ds", "train", [write(20, 1)], 391))
    loaded: list[LoadedManifest] = [
        commit(root, replace(manifest, message=text)) for text in ("a", "b")
    ]
    assert diff_manifests(*(one.manifest for one in loaded)).same_content
