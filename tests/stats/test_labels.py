"""Labels of any size: counted are those that rows have, in no more memory than they take."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from services.settings import load_settings
from services.shards.manifest import LoadedManifest, commit
from services.shards.store import Store
from services.shards.writer import build_split, write_shard
from services.stats.app import create_app
from services.stats.content import label_report
from services.stats.facts import Facts, facts_of
from services.stats.health import standing_findings
from services.stats.paging import Page
from services.types import TokenRows
from services.wire.seit import v1 as wire
from tests.small_datasets import SPEC, write_dataset

LARGEST = 2**31 - 1


def facts_with(labels: list[list[int]], classes: list[str]) -> Facts:
    """Of a version with a shard for each list of its rows' labels."""
    shards = []
    for number, rows in enumerate(labels):
        found = sorted(Counter(rows).items())
        counts = wire.LabelCounts(
            labels=[label for label, _ in found], rows=[many for _, many in found]
        )
        shards.append(wire.Shard(path=f"shards/{number}", rows=len(rows), bytes=1, labels=counts))
    codes = [sum(map(len, labels)) * 24, *[0] * 15]
    split = wire.Split(name="train", shards=shards, code_counts=codes)
    about = wire.Manifest(dataset="ds", version=1, spec=SPEC, classes=classes, splits=[split])
    return facts_of(LoadedManifest(about, ""))


def pages(facts: Facts, sort: str, limit: int) -> list[tuple[int, int]]:
    """(label, rows) of all pages."""
    seen: list[tuple[int, int]] = []
    start = 0
    while True:
        page = label_report(facts, None, sort, Page(1, start, limit))  # type: ignore[arg-type]
        seen += [(one.label, one.rows) for one in page.labels]
        start += limit
        if not page.next:
            return seen


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.integers(-1, 4) | st.integers(-1, LARGEST), min_size=1, max_size=9), max_size=5
    ),
    st.sampled_from(["label", "rows", "-rows"]),
)
def test_labels_without_names_are_those_that_rows_have(labels: list[list[int]], sort: str) -> None:
    facts = facts_with(labels, [])
    wanted = Counter(label for rows in labels for label in rows)
    found = pages(facts, sort, 3)
    assert dict(found) == wanted
    assert len(found) == len(wanted)
    keys = {"label": lambda one: one[0], "rows": lambda one: one[::-1]}
    ordered = keys.get(sort, lambda one: (-one[1], one[0]))
    assert found == sorted(found, key=ordered)
    report = label_report(facts, None, "label", Page(1, 0, 100))
    assert (report.classes, report.empty_classes) == (len(wanted.keys() - {-1}), 0)
    assert report.unlabelled_rows == wanted[-1]
    assert not any("classes without" in one.text for one in standing_findings(facts))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(-1, 6), min_size=1, max_size=9), max_size=5))
def test_named_classes_are_all_told(labels: list[list[int]]) -> None:
    facts = facts_with(labels, [f"class {number}" for number in range(7)])
    wanted = Counter(dict.fromkeys(range(7), 0))
    wanted.update(label for rows in labels for label in rows)
    assert dict(pages(facts, "label", 4)) == wanted
    report = label_report(facts, None, "label", Page(1, 0, 100))
    assert report.classes == 7
    assert report.empty_classes == sum(wanted[label] == 0 for label in range(7))


@pytest.mark.parametrize("largest", [1_500_000_000, LARGEST])
def test_a_large_label_takes_no_more_memory(largest: int) -> None:
    facts = facts_with([[7, largest]], [])
    tracemalloc.start()
    try:
        standing_findings(facts)
        assert label_report(facts, None, "label", Page(1, 0, 9)).labels[1].label == largest
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_dataset_with_large_labels_is_one_of_many(root: Store) -> None:
    write_dataset(root)
    rows = TokenRows(
        np.zeros((2, 4, 6), np.uint16), np.array([7, LARGEST]), ["a", "b"], np.array([1, 1])
    )
    split = build_split(root, "ids", "train", [write_shard(root, "ids", "train", rows, SPEC)], 16)
    commit(
        root,
        wire.Manifest(dataset="ids", spec=replace(SPEC), tokenizer_kind="dct", splits=[split]),
    )
    with TestClient(create_app(root, load_settings({}), [])) as client:
        listed = client.get("/v1/datasets").json()["datasets"]
        labels = client.get("/v1/datasets/ids/labels?sort=label").json()["labels"]
        assert 'seit_dataset_rows{dataset="digits"}' in client.get("/metrics").text
    assert [one["name"] for one in listed] == ["digits", "ids"]
    assert [(one["label"], one["rows"]) for one in labels] == [(7, 1), (LARGEST, 1)]
