"""Answers of one manifest, against the rows that were written."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.shards.store import Store
from services.stats.report import (
    entropy_bits,
    storage_report,
    summarize,
)
from services.wire.seit import v1 as wire
from tests.small_datasets import SPEC, write_dataset


def test_summary_counts_what_was_written(root: Store) -> None:
    summary = summarize(write_dataset(root, shards=3, rows=5).manifest)
    stored = sum(entry.bytes for entry in root.scan("digits/shards"))
    assert (summary.rows, summary.shards, summary.bytes) == (17, 4, stored)
    assert summary.source_bytes == 17 * 700
    assert summary.bytes_per_image == stored / 17
    assert summary.share_of_source == stored / (17 * 700)
    assert (summary.splits, summary.classes, summary.spec) == (["train", "validation"], 3, SPEC)


def test_storage_adds_up(root: Store) -> None:
    report = storage_report(write_dataset(root).manifest)
    assert report.total is not None
    for field in ("rows", "shards", "bytes", "source_bytes", "pixel_bytes"):
        assert getattr(report.total, field) == sum(getattr(one, field) for one in report.splits)
    assert report.total.pixel_bytes == 17 * 32 * 48 * 3
    assert 0 < report.total.entropy_bits <= math.log2(SPEC.codes)
    assert report.total.used_codes + report.total.dead_codes == SPEC.codes
    assert report.total.entropy_bytes_per_image == report.total.entropy_bits * 4 * 6 / 8


def test_a_file_of_two_splits_is_stored_once(root: Store) -> None:
    manifest = write_dataset(root).manifest
    once = storage_report(manifest).total
    manifest.splits[1].shards.append(manifest.splits[0].shards[0])
    twice = storage_report(manifest).total
    assert once is not None
    assert twice is not None
    assert twice.rows == once.rows + 5
    assert (twice.bytes, twice.source_bytes) == (once.bytes, once.source_bytes)


def test_duplicates_are_those_of_the_splits_or_not_known(root: Store) -> None:
    """Rows of 2 x 1 tokens of 2 codes: 4 grids, so 15 rows of train repeat at least 11."""
    spec = wire.TokenSpec(grid_height=2, grid_width=1, codes=2, channels=1)
    manifest = write_dataset(root, spec=spec).manifest
    report = storage_report(manifest)
    counts = [one.duplicate_rows for one in report.splits]
    assert counts == [one.duplicate_rows for one in manifest.splits]
    assert counts[0] is not None
    assert counts[0] >= 11
    assert report.total is not None
    assert report.total.duplicate_rows == sum(count or 0 for count in counts)
    manifest.splits[1].duplicate_rows = None
    unknown = storage_report(manifest)
    assert unknown.splits[0].duplicate_rows == counts[0]
    assert unknown.splits[1].duplicate_rows is None
    assert unknown.total is not None
    assert unknown.total.duplicate_rows is None


@given(st.integers(1, 300), st.integers(1, 1000))
def test_entropy_of_equal_codes_is_their_logarithm(codes: int, each: int) -> None:
    counts = np.zeros(512)
    counts[:codes] = each
    assert entropy_bits(counts) == pytest.approx(math.log2(codes))


def test_entropy_of_nothing_is_nothing() -> None:
    assert entropy_bits(np.zeros(8)) == 0
