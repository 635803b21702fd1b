"""Renumbering: the same tokens under fewer ids, and nothing half-done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import CommitConflictError
from services.shards.cache import ShardCache
from services.shards.manifest import (
    LoadedManifest,
    commit,
    list_versions,
    load_manifest,
    put_asset,
    read_asset,
)
from services.shards.reader import DatasetReader
from services.shards.renumber import renumber_dataset
from services.shards.store import Store, open_store
from services.shards.verify import verify_dataset
from services.shards.writer import build_split, write_shard
from services.tokens.codebook import Codebook
from services.tokens.tokenizer import load_tokenizer, save_tokenizer
from services.tokens.vitvqgan import ViTSize, ViTVQGAN, ViTVQGANConfig
from services.types import TokenRows
from services.wire.seit import v1 as wire
from tests.seit_command import run_seit

CODES, SIZE = 40, ViTSize(dim=8, depth=1, heads=1, mlp=8)


def written(root: Store, seed: int, few: list[int]) -> LoadedManifest:
    """A dataset whose two splits use the codes `few` at most, with its real tokenizer."""
    torch.manual_seed(seed)
    model = ViTVQGAN(ViTVQGANConfig((12, 8), 4, SIZE, SIZE, codes=CODES, channels=4, dim_head=8))
    rng, splits = np.random.default_rng(seed), []
    for name, counts in (("train", (5, 3)), ("validation", (2,))):
        results = []
        for number, count in enumerate(counts):
            ids = rng.choice(few, (count, 3, 2)).astype(np.uint16)
            keys = [f"{name}/{number}/{row}" for row in range(count)]
            rows = TokenRows(ids, rng.integers(-1, 2, count), keys, np.arange(count) + 5)
            results.append(write_shard(root, "wide", name, rows, model.spec))
        splits.append(build_split(root, "wide", name, results, CODES))
    assets = {
        "codebook": model.codebook.to_bytes(),
        "tokenizer": save_tokenizer(model),
        "synonyms": b"of all codes",
    }
    return commit(
        root,
        wire.Manifest(
            dataset="wide",
            spec=model.spec,
            tokenizer_kind="vitvqgan",
            assets=[put_asset(root, "wide", kind, data) for kind, data in assets.items()],
            classes=["a", "b"],
            splits=splits,
        ),
    )


def asset(root: Store, loaded: LoadedManifest, kind: str) -> bytes:
    (found,) = (one for one in loaded.manifest.assets if one.kind == kind)
    return read_asset(root, "wide", found)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 100), st.sets(st.integers(0, CODES - 1), min_size=1, max_size=12))
def test_each_token_means_the_same_code(
    tmp_path_factory: pytest.TempPathFactory, seed: int, few: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("root")
    root = open_store(str(folder))
    before = written(root, seed, sorted(few))
    after = renumber_dataset(root, "wide")
    assert after is not None
    narrow = Codebook.from_bytes(asset(root, after, "codebook"))
    wide = Codebook.from_bytes(asset(root, before, "codebook"))
    assert narrow.original is not None
    assert after.spec == replace(before.spec, codes=narrow.codes)
    assert set(narrow.original.tolist()) <= few
    assert torch.equal(narrow.weight, wide.weight[torch.from_numpy(narrow.original)])
    cache = ShardCache(folder / "cache", 10**8)
    counts = [np.array(split.code_counts) for split in after.manifest.splits]
    assert (sum(counts) > 0).all()
    for name in ("train", "validation"):
        old, new = (
            DatasetReader(root, "wide", split=name, cache=cache, version=version)
            for version in (1, 2)
        )
        for one, two in zip(old.iter_rows(), new.iter_rows(), strict=True):
            assert (narrow.original[two.ids] == one.ids).all()
            assert (one.labels == two.labels).all()
            assert (list(one.keys), list(one.source_bytes)) == (
                list(two.keys), list(two.source_bytes),
            )  # fmt: skip
    assert all(check.failure is None for check in verify_dataset(root, "wide", 2))
    tokenizer = load_tokenizer(asset(root, after, "tokenizer"))
    assert tokenizer.spec == after.spec
    assert {one.kind for one in after.manifest.assets} == {"codebook", "tokenizer"}
    assert renumber_dataset(root, "wide") is None
    assert list_versions(root, "wide") == [1, 2]


def test_a_part_of_a_part_keeps_the_first_ids() -> None:
    whole = Codebook(torch.randn(9, 2))
    part = whole.restrict(np.array([7, 2, 5])).restrict(np.array([2, 0]))
    assert part.original is not None
    assert part.original.tolist() == [5, 7]
    read = Codebook.from_bytes(part.to_bytes())
    assert read.original is not None
    assert read.original.tolist() == [5, 7]
    assert Codebook.from_bytes(whole.to_bytes()).original is None


def test_a_version_that_came_between_is_not_overwritten(tmp_path: Path) -> None:
    root = open_store(str(tmp_path))
    first = written(root, 0, [3, 4, 30])

    def other(done: int, total: int) -> None:
        if done == 1:
            commit(root, replace(first.manifest, message="meanwhile", parent=first.digest))

    with pytest.raises(CommitConflictError):
        renumber_dataset(root, "wide", progress=other)
    assert list_versions(root, "wide") == [1, 2]
    assert load_manifest(root, "wide").manifest.message == "meanwhile"


def test_the_command_says_what_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(open_store(str(tmp_path)), 0, [3, 4, 30])
    ended = run_seit(capsys, "renumber", str(tmp_path), "wide")
    assert ended.code == 0
    assert "3" in ended.out
    ended = run_seit(capsys, "renumber", str(tmp_path), "wide")
    assert ended.code == 0, "what was asked for stands already"
    assert "nothing to renumber" in ended.out
