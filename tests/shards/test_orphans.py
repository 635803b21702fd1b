"""What counts as left behind, and what never does."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import numpy as np
import pytest

from services.errors import FormatError, InvalidInputError, NotFoundError, StoreError
from services.shards import orphans
from services.shards.manifest import commit, list_datasets
from services.shards.orphans import find_orphans, remove_orphans
from services.shards.retry import RetryPolicy
from services.shards.store import Entry, LocalStore, Names, Store, open_store
from services.shards.verify import verify_files
from services.shards.writer import ShardResult, build_split, write_shard
from services.types import TokenRows
from services.wire.seit import v1 as wire
from tests.seit_command import Seit
from tests.small_datasets import SPEC, write_dataset

LEFT = [
    "digits/shards/train-00.parquet",
    "digits/shards/.train-00.parquet.0123.tmp",
    "digits/assets/codebook-00.safetensors",
    "digits/versions/.00000003.json.0123.tmp",
    "digits/.probe-0a1b",
]
OTHERS = ["digits/README.md", "digits/notes/shards.txt", "other/shards/train-00.parquet"]


@pytest.fixture
def root(tmp_path: Path) -> Store:
    root = open_store(str(tmp_path))
    write_dataset(root)
    write_dataset(root, seed=1)
    return root


def found(root: Store, min_age_seconds: float = 0, later: float | None = 1000) -> list[str]:
    now = None if later is None else time.time() + later
    orphans = find_orphans(root, "digits", min_age_seconds=min_age_seconds, now=now)
    return [f"digits/{entry.path}" for entry in orphans]


def test_files_of_any_version_are_kept(root: Store) -> None:
    assert found(root) == []


def test_what_a_writer_leaves_is_found_and_nothing_else(root: Store) -> None:
    for path in LEFT + OTHERS:
        root.write(path, b"left")
    assert sorted(found(root)) == sorted(LEFT)


def test_shards_of_a_version_that_is_gone_are_found(root: Store) -> None:
    root.delete("digits/versions/00000002.json")
    assert len(found(root)) == 6  # and the hashes of two splits


def test_young_files_are_spared(root: Store) -> None:
    root.write(LEFT[0], b"left")
    assert found(root, min_age_seconds=2000) == []
    assert found(root, min_age_seconds=900) == [LEFT[0]]
    assert found(root, min_age_seconds=900, later=None) == []


def test_a_dataset_that_was_never_committed_is_all_left_behind(tmp_path: Path) -> None:
    root = open_store(str(tmp_path))
    root.write(LEFT[0], b"left")
    assert found(root) == [LEFT[0]]


def test_nothing_is_collected_next_to_a_version_that_cannot_be_read(root: Store) -> None:
    root.write("digits/versions/00000002.json", b'{"format": 3}')
    with pytest.raises(FormatError, match="upgrade"):
        found(root)


def test_names_are_checked(root: Store) -> None:
    with pytest.raises(NotFoundError, match=r"'none' .*; there are: digits$"):
        find_orphans(root, "none", min_age_seconds=0)
    with pytest.raises(InvalidInputError):
        find_orphans(root, "../digits", min_age_seconds=0)


def refuse_listing(monkeypatch: pytest.MonkeyPatch, ending: str, number: int) -> None:
    """What a file system answers for folders of this name. Tests may run as root, who may all."""
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith(ending):
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("place", ["/versions", "/shards", "/digits"])
def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(
    root: Store, monkeypatch: pytest.MonkeyPatch, place: str, number: int
) -> None:
    root = open_store(root.url, retry=RetryPolicy(2, 0.001, 0.001))
    refuse_listing(monkeypatch, place, number)
    with pytest.raises(StoreError, match=os.strerror(number)):
        found(root)


def test_somebodys_own_folder_beside_datasets_is_left_out(
    root: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(root, "private")
    refuse_listing(monkeypatch, "private/versions", errno.EACCES)
    assert list_datasets(root) == ["digits"]
    refuse_listing(monkeypatch, "digits/versions", errno.EIO)
    with pytest.raises(StoreError):
        list_datasets(root)


class Forgetful(LocalStore):
    """Storage whose listing of the versions is a part of them, without an error."""

    def list(self, prefix: str = "") -> Names:
        return super().list(prefix)[1:]


def test_nothing_is_collected_where_a_listing_leaves_versions_out(root: Store) -> None:
    with pytest.raises(StoreError, match=r"shows versions/00000001\.json, the next does not"):
        found(Forgetful(root.url, {}, RetryPolicy()))


DAY = 86400.0
SHARDS = 6


def put_shards(root: Store) -> list[ShardResult]:
    """What an ingest of the same pictures puts down, every time it is run."""

    def rows(number: int) -> TokenRows:
        ids = np.full((2, 4, 6), number, np.uint16)
        return TokenRows(ids, np.zeros(2, np.int64), [f"{number}/a", f"{number}/b"], ids[:, 0, 0])

    return [write_shard(root, "digits", "train", rows(number), SPEC) for number in range(SHARDS)]


def commit_shards(root: Store, results: list[ShardResult]) -> None:
    splits = [build_split(root, "digits", "train", results, SPEC.codes)]
    manifest = wire.Manifest(dataset="digits", spec=SPEC, tokenizer_kind="vitvqgan", splits=splits)
    commit(root, manifest)


def date(root: Store, path: str, modified: float) -> None:
    full = root.local_path(f"digits/{path}")
    assert full is not None
    os.utime(full, (modified, modified))


@pytest.fixture
def left(root: Store) -> list[Entry]:
    """The orphans of an ingest that died two days ago."""
    for result in put_shards(root):
        date(root, result.shard.path, time.time() - 2 * DAY)
    return find_orphans(root, "digits", min_age_seconds=DAY)


def whole(root: Store) -> bool:
    return all(check.failure is None for check in verify_files(root, "digits"))


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_what_nobody_writes_again_is_removed(
    root: Store, left: list[Entry], monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(orphans, "_BATCH", batch)
    assert remove_orphans(root, "digits", left, min_age_seconds=DAY) == left
    assert len(left) == SHARDS
    assert find_orphans(root, "digits", min_age_seconds=0) == []
    assert whole(root)


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("before", [0, 2, 4])
def test_an_ingest_that_is_run_again_meanwhile_keeps_its_shards(
    root: Store, left: list[Entry], monkeypatch: pytest.MonkeyPatch, before: int, commits: bool
) -> None:
    """Before anything is removed, or after the first files were."""
    results: list[ShardResult] = []
    gone: list[str] = []
    real = LocalStore.delete

    def again() -> None:
        results.extend(put_shards(root))
        if commits:
            commit_shards(root, results)

    def delete(store: LocalStore, path: str) -> None:
        real(store, path)
        if path.startswith("shards/"):
            gone.append(path)
            if len(gone) == before:
                again()

    monkeypatch.setattr(orphans, "_BATCH", 2)
    monkeypatch.setattr(LocalStore, "delete", delete)
    if not before:
        again()
    assert remove_orphans(root, "digits", left, min_age_seconds=DAY) == left[:before]
    if not commits:
        commit_shards(root, results)
    assert whole(root)


def test_a_version_that_names_the_old_files_meanwhile_keeps_them(
    root: Store, left: list[Entry]
) -> None:
    """A copy from another storage may keep the times of its files."""
    results = put_shards(root)
    for entry in left:
        date(root, entry.path, entry.modified)
    commit_shards(root, results)
    assert remove_orphans(root, "digits", left, min_age_seconds=DAY) == []
    assert whole(root)


def test_the_command_leaves_alone_what_is_written_again(
    root: Store, left: list[Entry], seit: Seit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(*args: object, **kwargs: object) -> list[Entry]:
        commit_shards(root, put_shards(root))
        return left

    monkeypatch.setattr(orphans, "find_orphans", found)
    shown = seit("gc", root.url, "digits", "--delete")
    assert shown.code == 0
    assert "0 files, 0 bytes, removed" in shown.out
    assert f"{SHARDS} files changed after they were listed" in shown.out
    assert whole(root)
