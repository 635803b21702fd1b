"""Google Cloud Storage through a server that speaks its API; datasets on every kind of store."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from services.errors import CommitConflictError, InvalidInputError, NotFoundError, StoreError
from services.shards.cache import ShardCache
from services.shards.manifest import commit, extend, list_datasets, load_manifest
from services.shards.orphans import find_orphans
from services.shards.reader import DatasetReader
from services.shards.store import Store, open_store
from services.shards.verify import verify_dataset
from services.shards.writer import build_split, write_shard
from services.types import TokenRows
from services.wire.seit import v1 as wire

Make = Callable[[int, int], TokenRows]


def manifest_of(store: Store, rows: TokenRows, spec: wire.TokenSpec) -> wire.Manifest:
    result = write_shard(store, "ds", "train", rows, spec)
    split = build_split(store, "ds", "train", [result], spec.codes)
    return wire.Manifest(dataset="ds", spec=spec, tokenizer_kind="release", splits=[split])


def test_a_dataset_is_committed_and_read_on_every_kind_of_store(
    store: Store, spec: wire.TokenSpec, make_rows: Make, tmp_path: Path
) -> None:
    rows, more = make_rows(30, 1), make_rows(20, 2)
    first = commit(store, manifest_of(store, rows, spec))
    result = write_shard(store, "ds", "train", more, spec)
    added = build_split(store, "ds", "train", [result], spec.codes)
    commit(store, extend(store, first, [added], "more"))
    with pytest.raises(CommitConflictError):
        commit(store, extend(store, first, [added], "too late"))
    assert list_datasets(store) == ["ds"]
    assert load_manifest(store, "ds").manifest.message == "more"
    assert load_manifest(store, "ds", 1).digest == first.digest
    reader = DatasetReader(store, "ds", split="train", cache=ShardCache(tmp_path / "c", 1 << 24))
    ids, labels = reader.take(np.array([1, 0, 1]), np.array([19, 29, 0]))
    np.testing.assert_array_equal(ids, np.stack([more.ids[19], rows.ids[29], more.ids[0]]))
    np.testing.assert_array_equal(labels, [more.labels[19], rows.labels[29], more.labels[0]])
    assert [check for check in verify_dataset(store, "ds") if check.failure] == []
    assert find_orphans(store, "ds", min_age_seconds=0) == []


def test_transient_faults_are_retried_by_the_store_alone(faulty_gcs, gcs_store: Store) -> None:
    data = os.urandom(50_000) + b"end"
    faulty_gcs.faults = [500, 503, "drop"]
    gcs_store.write("x", data)
    assert (gcs_store.retries, faulty_gcs.requests) == (3, 4)
    faulty_gcs.faults = ["truncate", 503, 500]
    assert gcs_store.read("x") == data
    assert (gcs_store.retries, faulty_gcs.requests) == (6, 8)


def test_a_refusal_is_not_retried(faulty_gcs, gcs_store: Store) -> None:
    faulty_gcs.faults = [403]
    with pytest.raises(StoreError, match=r"refused.*Forbidden"):
        gcs_store.read("x")
    assert (gcs_store.retries, faulty_gcs.requests) == (0, 1)


def test_attempts_are_bounded(faulty_gcs, gcs_store: Store) -> None:
    faulty_gcs.faults = [502] * 100
    with pytest.raises(StoreError, match=r"failed 6 times.*502"):
        gcs_store.read("x")
    assert (gcs_store.retries, faulty_gcs.requests) == (5, 6)


def test_create_knows_its_own_object_when_the_answer_was_lost(faulty_gcs, gcs_store: Store) -> None:
    faulty_gcs.faults = ["reset"]
    assert gcs_store.create("v/1", b"mine")
    faulty_gcs.faults = ["reset"]
    assert not gcs_store.create("v/1", b"theirs")
    assert gcs_store.read("v/1") == b"mine"


def test_a_server_without_conditional_writes_is_noticed(faulty_gcs, gcs_store: Store) -> None:
    faulty_gcs.lenient = True
    with pytest.raises(StoreError, match="ignores `ifGenerationMatch=0`"):
        gcs_store.check_exclusive()
    faulty_gcs.lenient = False
    assert gcs_store.list() == []
    gcs_store.check_exclusive()
    assert gcs_store.list() == []


def test_a_file_of_many_chunks_is_written_whole_and_created_once(gcs_store: Store) -> None:
    data = bytes(51 << 20)  # more than gcsfs sends in one request
    gcs_store.write("big", data)
    assert gcs_store.size("big") == len(data)
    assert gcs_store.create("new", data)
    assert not gcs_store.create("new", data[:-1] + b"1")
    assert gcs_store.read_range("new", len(data) - 2, 5) == b"\0\0"


def test_a_bucket_that_does_not_exist(gcs_store: Store, faulty_gcs) -> None:
    gone = open_store("gs://nobody/x", endpoint_url=faulty_gcs.url, token="anon", project="p")
    with pytest.raises(NotFoundError):
        gone.write("x", b"1")
    assert gone.list() == []
    with pytest.raises(InvalidInputError, match="bucket"):
        open_store("gs:///x")


def test_the_extra_is_named_where_gcsfs_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "services.shards.gcs", raising=False)
    monkeypatch.setitem(sys.modules, "gcsfs.core", None)
    with pytest.raises(InvalidInputError, match="pip install gcsfs, the extra `gcs`"):
        open_store("gs://bucket/x", token="anon")
