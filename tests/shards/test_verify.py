from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xxhash

from services.errors import InvalidInputError, NotFoundError
from services.shards.manifest import commit
from services.shards.store import Store
from services.shards.verify import verify_dataset, verify_files
from services.wire.seit import v1 as wire


def test_a_sound_dataset(store: Store, make_manifest, make_rows) -> None:
    draft = make_manifest(store, [make_rows(9, seed) for seed in range(8)])
    commit(store, draft)
    checks = list(verify_dataset(store, "ds", workers=3))
    assert list(verify_dataset(store, "ds", workers=1)) == checks
    assert [check.failure for check in checks] == [None] * 10
    shards = draft.splits[0].shards
    assert [check.name for check in checks] == [
        draft.assets[0].path,
        *(shard.path for shard in shards),
        "split train",
    ]
    assert [check.bytes for check in checks[1:-1]] == [shard.bytes for shard in shards]


def test_each_kind_of_damage_is_named(root: Store, make_manifest, make_rows) -> None:
    draft = make_manifest(root, [make_rows(9, seed) for seed in range(5)])
    commit(root, draft)
    shards = draft.splits[0].shards
    folder = root.child("ds")
    data = folder.read(shards[1].path)
    folder.write(shards[1].path, data[:50] + bytes([data[50] ^ 8]) + data[51:])
    folder.write(shards[2].path, folder.read(shards[2].path)[:-1])
    folder.delete(shards[3].path)
    folder.write(draft.assets[0].path, b"other")
    checks = {check.name: check.failure for check in verify_dataset(root, "ds", 1)}
    assert shards[1].xxh3 in str(checks[shards[1].path])
    assert f"expected {shards[2].bytes}" in str(checks[shards[2].path])
    assert "no such file" in str(checks[shards[3].path])
    assert "xxh3" in str(checks[draft.assets[0].path])
    assert "cannot be checked" in str(checks["split train"])
    assert [checks[shards[number].path] for number in (0, 4)] == [None, None]
    quick = {check.name: check.failure for check in verify_files(root, "ds", 1)}
    assert quick == {name: failure for name, failure in checks.items() if name != "split train"}


def changed_shard(draft: wire.Manifest, **changes: object) -> wire.Manifest:
    split = draft.splits[0]
    shard = replace(split.shards[0], **changes)
    return replace(draft, splits=[replace(split, shards=[shard, *split.shards[1:]])])


def test_a_manifest_that_misreports_is_noticed(root: Store, make_manifest, make_rows) -> None:
    draft = make_manifest(root, [make_rows(9, 0), make_rows(9, 1)])
    counts = list(draft.splits[0].code_counts)
    counts[0], counts[390] = counts[0] + 1, counts[390] - 1
    liars = {
        "labels": changed_shard(draft, labels=wire.LabelCounts(labels=[0], rows=[9])),
        "source bytes": changed_shard(draft, source_bytes=1),
        "code 0": replace(draft, splits=[replace(draft.splits[0], code_counts=counts)]),
    }
    for word, liar in liars.items():
        commit(root, liar)
        failures = [check.failure for check in verify_dataset(root, "ds") if check.failure]
        assert word in failures[0]
        assert not any(check.failure for check in verify_files(root, "ds"))  # files as written


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (5 << 19) + 7])
def test_a_digest_is_that_of_all_bytes(store: Store, size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    store.write("file", data)
    assert store.digest("file") == (size, xxhash.xxh3_128_hexdigest(data))


@pytest.mark.parametrize("verify", [verify_files, verify_dataset])
def test_what_cannot_be_begun_raises(verify, root: Store, make_manifest) -> None:
    with pytest.raises(NotFoundError):
        verify(root, "ds")
    commit(root, make_manifest(root, []))
    with pytest.raises(InvalidInputError, match="workers"):
        verify(root, "ds", workers=0)
