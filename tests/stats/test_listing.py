"""Shards, labels and codes: every page, order and filter is a part of the same whole."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import InvalidInputError, NotFoundError
from services.shards.manifest import LoadedManifest, commit, extend, file_sizes
from services.shards.store import Entry, Store
from services.stats.content import balance, code_report, label_report, ranked
from services.stats.facts import facts_of
from services.stats.growth import audit, version_storage
from services.stats.listing import ShardQuery, ShardSort, shard_order, shard_page
from services.stats.paging import Page, parse_cursor
from services.stats.written import adapter
from services.wire.seit import v1 as wire
from tests.small_datasets import write_dataset


@pytest.mark.parametrize("sort", get_args(ShardSort))
@pytest.mark.parametrize("split", [None, "train", "validation"])
@pytest.mark.parametrize("limit", [1, 2, 100])
def test_pages_are_a_partition_in_order(
    root: Store, sort: ShardSort, split: str | None, limit: int
) -> None:
    loaded = write_dataset(root)
    manifest, facts = loaded.manifest, facts_of(loaded)
    order = shard_order(facts, ShardQuery(split=split, sort=sort))
    seen, start = [], 0
    while True:
        written = shard_page(facts, order, Page(1, start, limit))
        page = written.message()
        assert written.json == adapter(wire.ShardList).dump_json(page)
        assert 0 < len(page.shards) <= limit
        seen += page.shards
        if not page.next:
            break
        version, start = parse_cursor(page.next, None)
        assert version == manifest.version
    wanted = [(one.name, shard.path) for one in manifest.splits for shard in one.shards]
    found = [(one.split, one.shard.path) for one in seen if one.shard]
    assert sorted(found) == sorted(pair for pair in wanted if split in (None, pair[0]))
    values = {
        "row": lambda one: wanted.index((one.split, one.shard.path)),
        "path": lambda one: one.shard.path,
        "rows": lambda one: one.shard.rows,
        "bytes": lambda one: one.shard.bytes,
        "bytes_per_image": lambda one: one.shard.bytes / one.shard.rows,
    }[sort.removeprefix("-")]
    keys = [values(one) for one in seen]
    assert keys == sorted(keys, reverse=sort.startswith("-"))


def test_a_page_tells_of_what_the_manifest_says_of_its_shards(root: Store) -> None:
    manifest = write_dataset(root).manifest
    score = wire.Column(name="score", type="double", path="columns/a", rows=4, bytes=9, xxh3="0a")
    manifest.splits[0].shards[1].columns.append(score)
    facts = facts_of(LoadedManifest(manifest, ""))
    order = shard_order(facts, ShardQuery())
    page = shard_page(facts, order, Page(1, 0, 100)).message()
    said = [(split.name, shard) for split in manifest.splits for shard in split.shards]
    assert [(one.split, one.shard) for one in page.shards] == said
    assert [facts.shards.at(place) for place in order.tolist()] == [shard for _, shard in said]
    assert shard_order(facts, ShardQuery(column="score")).tolist() == [1]


def test_filters_keep_what_they_name(root: Store) -> None:
    facts = facts_of(write_dataset(root))
    assert len(shard_order(facts, ShardQuery(label=2))) == 3  # validation has labels 0 and 1
    assert len(shard_order(facts, ShardQuery(contains="validation-"))) == 1
    assert len(shard_order(facts, ShardQuery(column="score"))) == 0
    with pytest.raises(NotFoundError, match=r"no split 'test'.*train, validation"):
        shard_order(facts, ShardQuery(split="test"))


def test_labels_and_codes_are_those_of_the_rows(root: Store) -> None:
    facts = facts_of(write_dataset(root))
    page = Page(1, 0, 100)
    labels = label_report(facts, "train", "label", page)
    assert [(one.label, one.name, one.rows) for one in labels.labels] == [
        (0, "zero", 6),
        (1, "one", 6),
        (2, "[red]two", 3),
    ]
    assert (labels.rows, labels.imbalance, labels.largest_rows) == (15, 2.0, 6)
    codes = code_report(facts, None, "-tokens", page)
    assert codes.tokens == 17 * 24
    assert sum(one.tokens for one in codes.counts) == codes.tokens
    assert codes.used_codes + codes.dead_codes == codes.codes == 16
    assert 1 < codes.perplexity <= codes.used_codes


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=3000))
def test_a_ranked_curve_falls_and_sums_to_one(counts: list[int]) -> None:
    shares, width = ranked(np.array(counts))
    assert len(shares) <= 256
    assert all(later <= one + 1e-12 for one, later in itertools.pairwise(shares))
    sizes = [min(width, len(counts) - at * width) for at in range(len(shares))]
    total = sum(share * size for share, size in zip(shares, sizes, strict=True))
    assert total == pytest.approx(1 if sum(counts) else 0)


@given(st.integers(1, 100), st.integers(1, 1000))
def test_even_labels_are_balanced(classes: int, rows: int) -> None:
    assert balance(np.full(classes, rows)) == pytest.approx(1)


@settings(max_examples=50)
@given(st.text(min_size=1, max_size=30).filter(lambda text: not text.replace(".", "").isdigit()))
def test_a_foreign_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="start again without a cursor"):
        parse_cursor(text, None)


def test_growth_and_the_folder_add_up(root: Store) -> None:
    first = write_dataset(root, shards=2)
    more = write_dataset(root, "other", shards=3, seed=5).manifest.splits[0]
    write_dataset(root, "other", shards=1, seed=6)  # orphans, when they stand beside digits
    for path in root.child("other").list():
        if not path.startswith("versions/"):
            root.child("digits").write(path, root.child("other").read(path))
    second = commit(root, extend(root, first, [more], "more"))
    grown = version_storage(facts_of(second), facts_of(first))
    assert grown.added_bytes + grown.shared_bytes == grown.file_bytes
    assert grown.added_bytes >= sum(shard.bytes for shard in more.shards)
    folder = root.child("digits")
    sizes = [file_sizes(first.manifest), file_sizes(second.manifest)]
    now = max(entry.modified for entry in folder.scan()) + 10_000
    found = audit(folder.scan(), sizes, now)
    assert found.missing_files == 0
    assert found.orphaned_bytes > 0  # shards of `other` that digits does not name
    assert found.shared_bytes == sum(
        sizes[0].values() if sizes[0].keys() <= sizes[1].keys() else []
    )
    lost = [one for one in folder.scan() if one.path != more.shards[0].path]
    broken = audit([*lost, Entry(more.shards[0].path, 1, 0)], sizes, now)
    assert (broken.missing_files, broken.missing) == (1, [more.shards[0].path])
