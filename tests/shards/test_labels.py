"""Label counts of shards: what comes out is what went in, few or many, and damage is named."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.errors import FormatError
from services.plan.subset import Subset, SubsetSpec
from services.shards.diff import diff_manifests
from services.shards.labels import MOST_LISTED, counts_of, pack_counts
from services.shards.manifest import commit, dump_manifest, load_manifest, parse_manifest
from services.shards.store import Store
from services.shards.verify import verify_dataset
from services.shards.writer import build_split, write_shard
from services.stats.content import label_counts
from services.stats.facts import facts_of
from services.types import UNLABELLED, TokenRows
from services.wire.seit import v1 as wire
from tests.shards.conftest import SPEC

CLASSES = 300


def shard_of(labels: np.ndarray, rows: np.ndarray) -> wire.Shard:
    return wire.Shard(path="shards/a", rows=int(rows.sum()), labels=pack_counts(labels, rows))


@given(
    st.dictionaries(
        st.integers(UNLABELLED, (1 << 31) - 1), st.integers(1, 1 << 20), min_size=1, max_size=200
    )
)
def test_counts_come_back_as_they_were(counts: dict[int, int]) -> None:
    labels = np.array(sorted(counts), np.int64)
    rows = np.array([counts[label] for label in labels.tolist()], np.int64)
    shard = shard_of(labels, rows)
    assert shard.labels is not None
    assert bool(shard.labels.packed) == (len(counts) > MOST_LISTED)
    found_labels, found_rows = counts_of(shard)
    np.testing.assert_array_equal(found_labels, labels)
    np.testing.assert_array_equal(found_rows, rows)


def test_shuffled_rows_of_many_classes_take_a_few_kilobytes_a_shard() -> None:
    drawn = np.random.default_rng(0).integers(0, 21_000, 8192)
    labels, rows = np.unique(drawn, return_counts=True)
    packed = pack_counts(labels, rows)
    listed = json.dumps([labels.tolist(), rows.tolist()])
    assert len(packed.packed) < len(listed) / 6


@given(st.data())
def test_damage_is_named_whatever_it_is(data: st.DataObject) -> None:
    labels = np.arange(100)
    shard = shard_of(labels, np.full(100, 2))
    assert shard.labels is not None
    packed = shard.labels.packed
    place = data.draw(st.integers(0, len(packed) - 1))
    other = data.draw(st.sampled_from(["", "?", "é", "AAAA"]))
    broken = packed[:place] + other + packed[place + 1 :]
    with pytest.raises(FormatError, match="shards/a"):
        counts_of(replace(shard, labels=wire.LabelCounts(packed=broken)))


@pytest.mark.parametrize("numbers", [0, 7, 8 * 400 + 8, 500_000_000])
def test_counts_of_more_labels_than_rows_are_refused_unread(numbers: int) -> None:
    packed = base64.b64encode(zlib.compress(bytes(numbers), 9)).decode()
    shard = wire.Shard(path="shards/a", rows=400, labels=wire.LabelCounts(packed=packed))
    with pytest.raises(FormatError, match="one to 400 labels"):
        counts_of(shard)


@pytest.fixture
def many(root: Store) -> wire.Manifest:
    """Two shards of 400 shuffled rows of nearly all of 300 classes, committed."""
    rng = np.random.default_rng(3)
    written = []
    for number in range(2):
        rows = TokenRows(
            ids=rng.integers(0, SPEC.codes, (400, 4, 6)).astype(np.uint16),
            labels=rng.integers(0, CLASSES, 400),
            keys=[f"{number}-{row}" for row in range(400)],
            source_bytes=np.zeros(400, np.int64),
        )
        written.append(write_shard(root, "ds", "train", rows, SPEC))
    draft = wire.Manifest(
        dataset="ds",
        spec=SPEC,
        tokenizer_kind="release",
        classes=[f"class {number}" for number in range(CLASSES)],
        splits=[build_split(root, "ds", "train", written, SPEC.codes)],
    )
    return commit(root, draft).manifest


def test_everyone_reads_packed_counts(root: Store, many: wire.Manifest) -> None:
    assert many.format == 2
    assert [check.failure for check in verify_dataset(root, "ds", 1)] == [None] * 4
    loaded = load_manifest(root, "ds")
    counted = label_counts(facts_of(loaded), None)
    assert counted[0] == 0
    assert counted.sum() == 800
    pairs = [counts_of(shard) for shard in many.splits[0].shards]
    for label in range(CLASSES):
        assert counted[1 + label] == sum(int(rows[labels == label].sum()) for labels, rows in pairs)
    chosen = Subset(SubsetSpec(rows=300, seed=1), np.array([400, 400]), pairs)
    assert chosen.shard_rows.sum() == 300
    smaller = replace(many.splits[0], shards=many.splits[0].shards[:1])
    before = wire.Split(name="train", shards=smaller.shards)
    found = diff_manifests(replace(many, splits=[before]), many)
    told = sum(each.after - each.before for split in found.splits for each in split.labels)
    assert told == 400


def test_the_first_format_that_can_say_it_is_written(root: Store, many: wire.Manifest) -> None:
    data = json.loads(dump_manifest(many))
    data["format"] = 1
    with pytest.raises(FormatError, match="packed label counts"):
        parse_manifest(json.dumps(data).encode())
    few = TokenRows(
        ids=np.zeros((5, 4, 6), np.uint16),
        labels=np.arange(5),
        keys=list("abcde"),
        source_bytes=np.zeros(5, np.int64),
    )
    written = [write_shard(root, "ds", "train", few, SPEC)]
    split = build_split(root, "ds", "train", written, SPEC.codes)
    after = commit(root, replace(many, splits=[split], parent="")).manifest
    assert (after.version, after.format) == (2, 1)
