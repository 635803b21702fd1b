"""What counts as left behind, and what never does."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from services.errors import FormatError, InvalidInputError, NotFoundError, StoreError
from services.shards.manifest import list_datasets
from services.shards.orphans import find_orphans
from services.shards.retry import RetryPolicy
from services.shards.store import LocalStore, Names, Store, open_store
from tests.small_datasets import write_dataset

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
    with pytest.raises(NotFoundError, match="'none'"):
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
