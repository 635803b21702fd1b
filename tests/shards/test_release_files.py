"""The published byte form: parity, constant memory, and errors that name file and row."""

from __future__ import annotations

import gzip
import io
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import FormatError, InvalidInputError, NotFoundError
from services.shards.release_files import (
    ReleaseSplit,
    escape_bytes,
    find_splits,
    read_split,
    write_split,
)
from services.types import IdArray, TokenRows
from services.wire.seit import v1 as wire

SPEC = wire.TokenSpec(grid_height=2, grid_width=3, codes=511, channels=1)


def rows_of(ids: IdArray) -> TokenRows:
    count = len(ids)
    return TokenRows(
        ids, np.arange(count), [str(row) for row in range(count)], np.zeros(count, int)
    )


def random_rows(count: int, codes: int = 511) -> TokenRows:
    rng = np.random.default_rng(count)
    return rows_of(rng.integers(0, codes, (count, 2, 3)).astype(np.uint16))


@pytest.fixture
def files(tmp_path: Path) -> ReleaseSplit:
    """A sound split of 50 rows."""
    split = ReleaseSplit(tmp_path, "some-train")
    write_split(split, [random_rows(50)], 50, 511)
    return split


def replace_gzip(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


def replace_index(path: Path, change: Callable[[IdArray], IdArray]) -> None:
    offsets = np.load(io.BytesIO(gzip.decompress(path.read_bytes())))
    buffer = io.BytesIO()
    np.save(buffer, change(offsets))
    path.write_bytes(gzip.compress(buffer.getvalue()))


def test_published_files_are_read_as_published_code_does(golden: Path) -> None:
    expected = np.load(golden / "release/expected.npz")
    spec = wire.TokenSpec(grid_height=32, grid_width=32, codes=391, channels=32)
    (split,) = find_splits(golden / "release")
    (rows,) = read_split(split, spec)
    np.testing.assert_array_equal(rows.ids, expected["tokens"])
    np.testing.assert_array_equal(rows.labels, expected["labels"])
    assert rows.keys[3] == "tiny-train/00000003"


def test_written_files_hold_the_published_bytes(golden: Path, tmp_path: Path) -> None:
    expected = np.load(golden / "release/expected.npz")
    theirs, ours = find_splits(golden / "release")[0], ReleaseSplit(tmp_path, "mine")
    ids, labels = expected["tokens"], expected["labels"].astype(np.int64)
    batches = [
        TokenRows(ids[part], labels[part], labels[part].astype(str), np.zeros_like(labels[part]))
        for part in (slice(0, 7), slice(7, 24))
    ]
    write_split(ours, batches, 24, 391)
    for mine, published in (ours.data, theirs.data), (ours.index, theirs.index):
        found, wanted = (gzip.decompress(path.read_bytes()) for path in (mine, published))
        assert found == wanted
    assert ours.labels.read_text().split() == theirs.labels.read_text().split()


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 9), data=st.data())
def test_bytes_follow_the_rule(rows: int, data: st.DataObject) -> None:
    token = st.one_of(st.integers(250, 260), st.just(510), st.integers(0, 510))
    ids = np.array(data.draw(st.lists(token, min_size=rows * 6, max_size=rows * 6)), np.uint16)
    content, offsets = escape_bytes(ids.reshape(rows, 6))
    by_rule = [bytes([t]) if t < 255 else bytes([255, t - 255]) for t in ids.tolist()]
    assert content.tobytes() == b"".join(by_rule)
    lengths = np.array([len(part) for part in by_rule]).reshape(rows, 6).sum(1)
    np.testing.assert_array_equal(np.diff(offsets), lengths)


@settings(deadline=None, max_examples=30)
@given(high=st.lists(st.sampled_from([254, 255, 509, 510]), min_size=12, max_size=12))
def test_runs_of_the_escape_byte_are_told_apart(
    tmp_path_factory: pytest.TempPathFactory, high: list[int]
) -> None:
    ids = np.array(high, np.uint16).reshape(2, 2, 3)
    split = ReleaseSplit(tmp_path_factory.mktemp("runs"), "x")
    write_split(split, [rows_of(ids)], 2, 511)
    (rows,) = read_split(split, SPEC)
    np.testing.assert_array_equal(rows.ids, ids)


@pytest.mark.parametrize("count", [1, 2047, 2048, 2049, 5000])
def test_chunks_join_without_a_seam(tmp_path: Path, count: int) -> None:
    rows, split = random_rows(count), ReleaseSplit(tmp_path, "a-val")
    write_split(split, [rows], count, 511)
    parts = list(read_split(split, SPEC))
    np.testing.assert_array_equal(np.concatenate([part.ids for part in parts]), rows.ids)
    np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), rows.labels)
    keys = [key for part in parts for key in part.keys]
    assert (len(set(keys)), keys[-1]) == (count, f"a-val/{count - 1:08d}")


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    spec = wire.TokenSpec(grid_height=16, grid_width=16, codes=300, channels=1)
    block = rows_of(np.random.default_rng(0).integers(0, 300, (1000, 16, 16)).astype(np.uint16))

    def peak(blocks: int) -> int:
        split = ReleaseSplit(tmp_path, f"x{blocks}")
        tracemalloc.start()
        write_split(split, (block for _ in range(blocks)), 1000 * blocks, 300)
        assert sum(len(rows) for rows in read_split(split, spec)) == 1000 * blocks
        _, bytes_ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return bytes_

    assert peak(24) < 1.3 * peak(6)


def test_damaged_data_is_named(files: ReleaseSplit) -> None:
    whole = files.data.read_bytes()
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: files.data.write_bytes(whole[:-20]), "not whole gzip data"),
        (lambda: files.data.write_bytes(b"no gzip"), "not whole gzip data"),
        (lambda: replace_gzip(files.data, lambda data: data[:-1]), "1 bytes too early"),
        (lambda: replace_gzip(files.data, lambda data: data + b" "), "goes on after the 50 rows"),
        (lambda: replace_gzip(files.data, lambda data: b"\0" * len(data)), "row 0 holds"),
        (lambda: replace_gzip(files.data, lambda data: data[:-2] + b"\1\xff"), "row 49 holds"),
    ]
    for damage, message in cases:
        files.data.write_bytes(whole)
        damage()
        with pytest.raises(FormatError, match=message) as caught:
            list(read_split(files, SPEC))
        assert str(files.data) in str(caught.value)


def test_damaged_checksum_at_the_end_is_found(files: ReleaseSplit) -> None:
    whole = bytearray(files.data.read_bytes())
    whole[-6] ^= 1
    files.data.write_bytes(whole)
    with pytest.raises(FormatError, match="CRC"):
        list(read_split(files, SPEC))


def test_damaged_index_is_named(files: ReleaseSplit) -> None:
    def with_row(offsets: IdArray, row: int, value: int) -> IdArray:
        changed = offsets.copy()
        changed[row] = value
        return changed

    whole = files.index.read_bytes()
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: replace_index(files.index, lambda x: x[1:]), "first offset"),
        (lambda: replace_index(files.index, lambda x: with_row(x, 7, -5)), "row 6 has"),
        (lambda: replace_index(files.index, lambda x: with_row(x, 50, 1 << 60)), "row 49 has"),
        (lambda: replace_index(files.index, lambda x: x.astype(np.int32)), "int64"),
        (lambda: replace_index(files.index, lambda x: x.astype(object)), "int64"),
        (lambda: replace_index(files.index, lambda x: x[:-1]), "goes on after the 49 rows"),
        (lambda: replace_gzip(files.index, lambda data: data[:-8]), "8 bytes too early"),
        (lambda: replace_gzip(files.index, lambda data: data + data), "after its 51 offsets"),
        (lambda: replace_gzip(files.index, lambda data: data[3:]), "not a gzipped .npy"),
    ]
    for damage, message in cases:
        files.index.write_bytes(whole)
        damage()
        with pytest.raises(FormatError, match=message):
            list(read_split(files, SPEC))


def test_wrong_labels_are_named(files: ReleaseSplit) -> None:
    lines = files.labels.read_text().splitlines()
    cases = {
        "has 49 lines": lines[:-1],
        "goes on after": [*lines, "3"],
        "line 3 is b'cat": [*lines[:2], "cat", *lines[3:]],
        "line 4 is b'-2": [*lines[:3], "-2", *lines[4:]],
        "line 1 is b'1_0": ["1_0", *lines[1:]],
        "line 5 is": [*lines[:4], "9" * 30, *lines[5:]],
    }
    for message, changed in cases.items():
        files.labels.write_text("\n".join(changed))
        with pytest.raises(FormatError, match=message):
            list(read_split(files, SPEC))


def test_wrong_grid_and_codebook_are_named(files: ReleaseSplit) -> None:
    with pytest.raises(FormatError, match=r"10 tokens take 10 to 20: give the release's grid"):
        list(read_split(files, wire.TokenSpec(grid_height=2, grid_width=5, codes=511)))
    with pytest.raises(FormatError, match=r"outside 0\.\.99: the codebook"):
        list(read_split(files, wire.TokenSpec(grid_height=2, grid_width=3, codes=100)))


def test_missing_files_are_named(files: ReleaseSplit, tmp_path: Path) -> None:
    files.labels.unlink()
    with pytest.raises(NotFoundError, match="some-train-label"):
        list(read_split(files, SPEC))
    with pytest.raises(NotFoundError, match="give the folder of a release"):
        find_splits(tmp_path / "elsewhere")


def test_failed_write_leaves_the_older_files(files: ReleaseSplit) -> None:
    before = {path.name: path.read_bytes() for path in files.folder.iterdir()}

    def batches() -> Iterator[TokenRows]:
        yield random_rows(5)
        raise KeyError

    with pytest.raises(KeyError):
        write_split(files, batches(), 10, 511)
    with pytest.raises(InvalidInputError, match="5 rows came where 10"):
        write_split(files, [random_rows(5)], 10, 511)
    with pytest.raises(InvalidInputError, match="512 codes"):
        write_split(files, [random_rows(5)], 5, 512)
    assert {path.name: path.read_bytes() for path in files.folder.iterdir()} == before
