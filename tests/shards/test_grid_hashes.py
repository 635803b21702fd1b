"""Duplicates of whole grids: the manifest's count against the rows themselves."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import CommitConflictError, FormatError, IntegrityError
from services.shards import grid_hashes
from services.shards.cache import ShardCache
from services.shards.manifest import (
    LoadedManifest,
    commit,
    dump_manifest,
    extend,
    load_manifest,
    named_files,
    parse_manifest,
)
from services.shards.orphans import find_orphans
from services.shards.reader import DatasetReader
from services.shards.store import Store, open_store
from services.shards.verify import verify_dataset
from services.shards.writer import ShardWriter, build_split, write_shard
from services.types import TokenRows
from services.wire.seit import v1 as wire
from tests.shards.fault_users import PROCESSES, SPEC, append_rows

MakeRows = Callable[[int, int], TokenRows]


def rows_of(choices: list[int], seed: int = 0) -> TokenRows:
    """Rows whose grids are chosen from a fixed sequence of grids, with repeats."""
    pool = np.random.default_rng(7).integers(0, SPEC.codes, (64, 4, 6)).astype(np.uint16)
    count = len(choices)
    return TokenRows(
        pool[choices],
        np.zeros(count, np.int64),
        [f"{seed}/{row}" for row in range(count)],
        np.zeros(count, np.int64),
    )


def split_of(root: Store, blocks: list[TokenRows]) -> wire.Split:
    results = [write_shard(root, "ds", "train", rows, SPEC) for rows in blocks]
    return build_split(root, "ds", "train", results, SPEC.codes)


def begin(root: Store, blocks: list[TokenRows]) -> LoadedManifest:
    manifest = wire.Manifest(
        dataset="ds", spec=SPEC, tokenizer_kind="release", splits=[split_of(root, blocks)]
    )
    return commit(root, manifest)


def repeated(ids: np.ndarray) -> int:
    return len(ids) - len(np.unique(ids.reshape(len(ids), -1), axis=0))


def ids_of(root: Store, folder: Path) -> np.ndarray:
    reader = DatasetReader(root, "ds", split="train", cache=ShardCache(folder, 1 << 30))
    return np.concatenate([rows.ids for rows in reader.iter_rows()])


def test_a_hash_is_that_of_the_ids_as_the_page_says() -> None:
    ids = rows_of([3, 1, 3]).ids
    hashes = grid_hashes.hash_grids(ids)
    assert hashes.tolist() == [
        xxhash.xxh3_64_intdigest(grid.astype("<u2").tobytes()) for grid in ids
    ]
    assert hashes[0] == hashes[2] != hashes[1]
    assert len(grid_hashes.hash_grids(ids[:0])) == 0


blocks_of_choices = st.lists(
    st.lists(st.integers(0, 20), min_size=1, max_size=12), min_size=1, max_size=4
)


@settings(deadline=None, max_examples=15)
@given(first=blocks_of_choices, additions=st.lists(blocks_of_choices, max_size=10))
def test_any_appends_count_as_the_rows_do(
    first: list[list[int]], additions: list[list[list[int]]]
) -> None:
    """All additions but the first are made to the first version, so that they are rebased."""
    root = open_store(f"memory://{uuid.uuid4().hex}")
    base = begin(root, [rows_of(choices) for choices in first])
    chosen = [choice for choices in first for choice in choices]
    assert base.manifest.splits[0].duplicate_rows == len(chosen) - len(set(chosen))
    for blocks in additions:
        splits = [split_of(root, [rows_of(choices) for choices in blocks])]
        commit(
            root,
            extend(root, base, splits, "more"),
            rebase=lambda newest, splits=splits: extend(root, newest, splits, "more"),
        )
        chosen += [choice for choices in blocks for choice in choices]
        split = load_manifest(root, "ds").manifest.splits[0]
        assert split.duplicate_rows == len(chosen) - len(set(chosen))
        assert len(split.grid_hashes) <= grid_hashes.MAX_FILES
        hashes = grid_hashes.split_hashes(root, "ds", [split])
        np.testing.assert_array_equal(hashes, np.sort(grid_hashes.hash_grids(rows_of(chosen).ids)))


def test_two_processes_append_and_no_duplicate_is_lost(root: Store, tmp_path: Path) -> None:
    begin(root, [rows_of([0, 1, 2])])
    writers = []
    for writer in range(2):
        blocks = [rows_of([number, 20 + number, writer], writer) for number in range(6)]
        writers.append(PROCESSES.Process(target=append_rows, args=(root, "ds", blocks)))
    for process in writers:
        process.start()
    for process in writers:
        process.join(60)
        assert process.exitcode == 0
    loaded = load_manifest(root, "ds").manifest
    ids = ids_of(root, tmp_path / "cache")
    assert (loaded.version, len(ids)) == (13, 39)
    assert loaded.splits[0].duplicate_rows == repeated(ids) > 0
    assert all(check.failure is None for check in verify_dataset(root, "ds"))


def test_on_every_store_the_files_are_named_checked_and_spared(
    store: Store, make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid_hashes, "MAX_FILES", 2)
    base = begin(store, [make_rows(9, 1)])
    for seed in range(2, 5):
        splits = [split_of(store, [make_rows(9, seed), make_rows(9, 1)])]
        base = commit(store, extend(store, base, splits, "more"))
    split = base.manifest.splits[0]
    assert split.duplicate_rows == 27
    assert 1 <= len(split.grid_hashes) <= grid_hashes.MAX_FILES
    assert {asset.path for asset in split.grid_hashes} <= named_files(base.manifest)
    checks = {check.name: check.failure for check in verify_dataset(store, "ds", workers=2)}
    assert {asset.path for asset in split.grid_hashes} <= checks.keys()
    assert not any(checks.values())
    # All that is left behind is the file of the addition with which the files were merged.
    left = [entry.path for entry in find_orphans(store, "ds", min_age_seconds=-10)]
    assert len(left) == 1
    assert left[0].startswith("assets/grid-hashes-")


def test_files_are_cut_and_merged(
    root: Store, make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid_hashes, "FILE_ROWS", 10)
    monkeypatch.setattr(grid_hashes, "MAX_FILES", 2)
    base = begin(root, [make_rows(25, 1)])
    assert len(base.manifest.splits[0].grid_hashes) == 3
    counts = []
    for seed in range(2, 8):
        base = commit(root, extend(root, base, [split_of(root, [make_rows(3, seed)])], "more"))
        counts.append(len(base.manifest.splits[0].grid_hashes))
    assert counts == [4, 5, 4, 5, 6, 5]  # at most 2 + rows // 10, then one a 10 rows
    assert all(check.failure is None for check in verify_dataset(root, "ds"))


def test_a_manifest_from_before_says_that_it_does_not_know(
    root: Store, make_rows: MakeRows
) -> None:
    loaded = begin(root, [make_rows(5, 1)])
    old = dump_manifest(loaded.manifest)
    for split in loaded.manifest.splits:
        known = wire.Split(name=split.name, shards=split.shards, code_counts=split.code_counts)
        text = dump_manifest(replace(loaded.manifest, splits=[known])).decode()
    text = text.replace(',"grid_hashes":[],"duplicate_rows":null', "").replace(',"columns":[]', "")
    assert "grid_hashes" not in text
    assert "columns" not in text
    parsed = parse_manifest(text.encode())
    assert parsed.splits[0].duplicate_rows is None
    assert parse_manifest(old).splits[0].duplicate_rows == 0
    root.write("ds/versions/00000001.json", text.encode())
    assert all(check.failure is None for check in verify_dataset(root, "ds"))
    base = load_manifest(root, "ds")
    done = commit(root, extend(root, base, [split_of(root, [make_rows(5, 1)])], "more"))
    assert done.manifest.splits[0].duplicate_rows is None
    assert done.manifest.splits[0].grid_hashes == []
    assert len(done.manifest.splits[0].shards) == 2


def test_no_rows_have_no_duplicates(root: Store) -> None:
    empty = build_split(root, "ds", "train", [], SPEC.codes)
    assert (empty.grid_hashes, empty.duplicate_rows) == ([], 0)
    base = commit(
        root, wire.Manifest(dataset="ds", spec=SPEC, tokenizer_kind="release", splits=[empty])
    )
    done = commit(root, extend(root, base, [split_of(root, [rows_of([1, 1])])], "first rows"))
    assert done.manifest.splits[0].duplicate_rows == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"duplicate_rows": 5}, "valid are 0 to 4"),
        ({"duplicate_rows": None}, "both, or neither"),
        ({"grid_hashes": []}, "both, or neither"),
        ({"path": "assets/../../x.npy"}, "could name a file outside"),
        ({"path": "shards/x.npy"}, "not below 'assets/'"),
        ({"xxh3": "0"}, "hexadecimal"),
        ({"bytes": 0}, "bytes is 0"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(
    root: Store, make_rows: MakeRows, change: dict[str, object], words: str
) -> None:
    loaded = begin(root, [make_rows(5, 1)])
    (split,) = loaded.manifest.splits
    if set(change) & {"path", "xxh3", "bytes"}:
        change = {"grid_hashes": [replace(split.grid_hashes[0], **change)]}
    liar = replace(loaded.manifest, splits=[replace(split, **change)])
    with pytest.raises(FormatError, match=words):
        parse_manifest(dump_manifest(liar))


def npy(values: object, kind: str = "<u8") -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, np.array(values, kind), allow_pickle=False)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        npy([1, 2, 3, 4]),  # fewer than rows
        npy([5, 4, 3, 2, 1]),
        npy([[1, 2, 3, 4, 5]]),
        npy([1, 2, 3, 4, 5], ">u8"),
        npy([1, 2, 3, 4, 5], "<f8"),
        npy([1, 2, 3, 4, 5])[:-1],
        npy([1, 2, 3, 4, 5]) + b"\0",
        npy([1, 2, 3, 4, 5])[:20],
        b"\x80\x04K\x01.",
        b"x",
    ],
)
def test_a_file_of_something_else_is_refused(root: Store, make_rows: MakeRows, data: bytes) -> None:
    loaded = begin(root, [make_rows(5, 1)])
    (split,) = loaded.manifest.splits
    path, digest = "assets/grid-hashes-00.npy", xxhash.xxh3_128_hexdigest(data)
    root.child("ds").write(path, data)
    asset = wire.Asset(kind="grid-hashes", path=path, bytes=len(data), xxh3=digest)
    liar = commit(root, replace(loaded.manifest, splits=[replace(split, grid_hashes=[asset])]))
    assert any(check.failure for check in verify_dataset(root, "ds"))
    with pytest.raises(FormatError, match="hashes"):
        extend(root, liar, [split_of(root, [make_rows(2, 2)])], "more")


@settings(deadline=None, max_examples=40)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7), cut=st.integers(0, 300))
def test_damage_is_noticed_before_it_is_counted(place: int, bit: int, cut: int) -> None:
    root = open_store(f"memory://{uuid.uuid4().hex}")
    base = begin(root, [rows_of(list(range(20)))])
    path = f"ds/{base.manifest.splits[0].grid_hashes[0].path}"
    data = bytearray(root.read(path))
    data[place % len(data)] ^= 1 << bit
    root.write(path, bytes(data[: len(data) - cut]))
    with pytest.raises(IntegrityError, match="damaged"):
        extend(root, base, [split_of(root, [rows_of([1])])], "more")


def test_a_wrong_count_and_hashes_of_other_rows_are_found(root: Store, make_rows: MakeRows) -> None:
    loaded = begin(root, [make_rows(5, 1)])
    (split,) = loaded.manifest.splits
    commit(root, replace(loaded.manifest, splits=[replace(split, duplicate_rows=2)]))
    (wrong,) = [check for check in verify_dataset(root, "ds") if check.failure]
    assert wrong.name == "split train"
    assert "0 of its rows repeat a grid, the manifest says 2" in str(wrong.failure)
    other = split_of(root, [make_rows(5, 2)]).grid_hashes
    commit(root, replace(loaded.manifest, splits=[replace(split, grid_hashes=other)]))
    (wrong,) = [check for check in verify_dataset(root, "ds") if check.failure]
    assert "not those of its shards' rows" in str(wrong.failure)


def test_a_change_without_rebase_is_still_a_conflict(root: Store, make_rows: MakeRows) -> None:
    base = begin(root, [make_rows(5, 1)])
    begin(root, [make_rows(5, 1)])
    with pytest.raises(CommitConflictError):
        commit(root, extend(root, base, [split_of(root, [make_rows(2, 2)])], "more"))


def test_a_stream_of_shards_counts_over_all_of_them(root: Store) -> None:
    rows = rows_of([1, 2, 3] * 10)
    with ShardWriter(root, "ds", "train", SPEC, 7) as writer:
        writer.add(rows)
    split = build_split(root, "ds", "train", writer.results, SPEC.codes)
    assert split.duplicate_rows == repeated(rows.ids) == 27
