"""What counts as left behind, and what never does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from services.errors import FormatError, InvalidInputError, NotFoundError
from services.shards.orphans import find_orphans
from services.shards.store import Store, open_store
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
