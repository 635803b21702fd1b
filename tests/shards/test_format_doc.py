"""The reader that stands in docs/format.md reads what the writer writes."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from services.shards import columns
from services.shards.column_file import PART_BYTES, Part, part_file
from services.shards.manifest import commit, extend, load_manifest
from services.shards.store import Store
from services.shards.validate import COLUMN_TYPES
from services.shards.writer import ShardWriter, build_split
from services.types import TokenRows
from services.wire.seit import v1 as wire
from tests.small_datasets import write_dataset

PAGE = Path(__file__).resolve().parents[2] / "docs/format.md"
SPEC = wire.TokenSpec(
    grid_height=8, grid_width=6, codes=2000, channels=4, image_height=0, image_width=0
)
SHARD_ROWS = 200

Reader = Callable[[Path, str], Iterator[tuple[Any, ...]]]


def reader_source() -> str:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(block)


@pytest.fixture(scope="module")
def read_split() -> Reader:
    names: dict[str, Any] = {}
    exec(compile(reader_source(), str(PAGE), "exec"), names)
    found: Reader = names["read_split"]
    return found


def rows_of(shares_U: Any, seed: int) -> TokenRows:
    """Two shards and a half of ids, drawn from U codes with these shares."""
    rng = np.random.default_rng(seed)
    count = SHARD_ROWS * 5 // 2
    used = rng.permutation(SPEC.codes)[: len(shares_U)]
    drawn = rng.choice(len(shares_U), (count, 8, 6), p=shares_U / shares_U.sum())
    return TokenRows(
        ids=used[drawn].astype(np.uint16),
        labels=rng.integers(-1, 5, count),
        keys=[f"{seed}/ü{row}.jpg" for row in range(count)],
        source_bytes=rng.integers(0, 1 << 40, count),
    )


CASES: dict[tuple[str, ...], Any] = {
    ("byte",): np.ones(200),
    ("escape",): np.append(np.ones(250), np.full(100, 0.1)),
    ("escape", "escape_high"): np.append(np.full(250, 50.0), np.ones(1700)),
    ("planes",): np.ones(2000),
}


@pytest.mark.parametrize("form", CASES, ids="-".join)
def test_the_page_reads_what_the_writer_writes(
    root: Store, read_split: Reader, form: tuple[str, ...]
) -> None:
    written = {"train": rows_of(CASES[form], 1), "validation": rows_of(CASES[form], 2)}
    splits = []
    for name, rows in written.items():
        with ShardWriter(root, "ds", name, SPEC, SHARD_ROWS) as writer:
            writer.add(rows)
        splits.append(build_split(root, "ds", name, writer.results, SPEC.codes))
    for _ in range(11):  # versions beyond 9, to see that the newest is taken
        manifest = wire.Manifest(
            dataset="ds", spec=replace(SPEC), tokenizer_kind="release", splits=splits[1:]
        )
        commit(root, manifest)
    committed = commit(root, replace(manifest, splits=splits))
    folder = root.local_path("ds")
    assert folder is not None
    for shard in committed.manifest.splits[0].shards:
        file = pq.ParquetFile(folder / shard.path)
        assert json.loads(file.metadata.metadata[b"seit.tokens"])["encoding"] == form[0]
        assert ("escape_high" in file.schema.names) == ("escape_high" in form)
    for name, rows in written.items():
        shards = list(read_split(folder, name))
        assert len(shards) == 3
        ids, labels, keys, sizes, added = zip(*shards, strict=True)
        assert added == ({}, {}, {})
        np.testing.assert_array_equal(np.concatenate(ids), rows.ids)
        assert np.concatenate(ids).dtype == np.uint16
        np.testing.assert_array_equal(np.concatenate(labels), rows.labels)
        assert [key for part in keys for key in part] == rows.keys
        np.testing.assert_array_equal(np.concatenate(sizes), rows.source_bytes)


@pytest.mark.parametrize("part_bytes", [100, 1 << 25])
def test_the_page_reads_added_columns(
    root: Store,
    read_split: Reader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part_bytes: int,
) -> None:
    """Also of shards with several files a column, and of shards that have none."""
    monkeypatch.setattr(columns, "PART_BYTES", part_bytes)
    base = write_dataset(root, "ds")
    keys = [f"train/0/{number}/{row}.png" for number in range(3) for row in range(5)]
    tables = {
        "mask": pa.table({"key": keys, "value": [key.encode() for key in keys]}),
        "score": pa.table({"key": keys, "value": [float(row) for row in range(15)]}),
    }
    for name, table in tables.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
        columns.add_column(root, "ds", name, tmp_path / f"{name}.parquet", splits=["train"])
    later = write_dataset(root, "ds", seed=1)
    split = later.manifest.splits[0]
    longer = extend(root, load_manifest(root, "ds", 3), [split], "more")
    done = commit(root, replace(longer, parent=""))
    assert len(done.manifest.splits[0].shards) == 2 * len(base.manifest.splits[0].shards)
    folder = root.local_path("ds")
    assert folder is not None
    added = [shard[-1] for shard in read_split(folder, "train")]
    assert added[3:] == [{}, {}, {}]
    for name, table in tables.items():
        assert [v for part in added[:3] for v in part[name]] == table["value"].to_pylist()
    several = part_bytes == 100
    assert (len(done.manifest.splits[0].shards[0].columns) > 2) == several


def test_the_page_tells_of_the_files_of_columns_as_they_are() -> None:
    part = Part("score", "float64", "0" * 32, 3, 2)
    file = pq.ParquetFile(pa.BufferReader(part_file(pa.array([0.5, 1.5]), part)))
    said = file.metadata.metadata
    assert said[b"seit.format"] == b"1"
    assert json.loads(said[b"seit.column"]) == {
        "name": "score", "type": "float64", "shard": "0" * 32, "start": 3, "rows": 2
    }  # fmt: skip
    assert said[b"seit.check"].decode() == f"{xxhash.xxh3_64_intdigest(said[b'seit.column']):016x}"
    (column,) = (file.metadata.row_group(0).column(at) for at in range(file.metadata.num_columns))
    assert (column.compression, column.path_in_schema) == ("ZSTD", "value")
    assert "PLAIN" in column.encodings
    assert not file.schema_arrow.field("value").nullable
    assert PART_BYTES == 2**25
    for kind in COLUMN_TYPES:
        assert f"`{kind}`" in PAGE.read_text()


def test_duplicates_are_counted_as_the_page_says(root: Store) -> None:
    """From the files of hashes alone, and from the rows by the page's words."""
    rows = rows_of(np.ones(3), 1)
    ids = rows.ids.copy()
    ids[400:] = ids[:100]
    with ShardWriter(root, "ds", "train", SPEC, SHARD_ROWS) as writer:
        writer.add(replace(rows, ids=ids))
    split = build_split(root, "ds", "train", writer.results, SPEC.codes)
    path = root.local_path(f"ds/{split.grid_hashes[0].path}")
    assert path is not None
    assert path.stem == f"grid-hashes-{split.grid_hashes[0].xxh3[:16]}"
    kept = np.load(path, allow_pickle=False)
    assert (kept.dtype, kept.shape) == (np.dtype("<u8"), (500,))
    wanted = [xxhash.xxh3_64_intdigest(row.astype("<u2").tobytes(), seed=0) for row in ids]
    assert kept.tolist() == sorted(wanted)
    assert split.duplicate_rows == len(kept) - len(np.unique(kept)) >= 100


def test_the_page_refuses_a_newer_format(root: Store, read_split: Reader) -> None:
    root.write("ds/versions/00000001.json", b'{"format": 3}')
    folder = root.local_path("ds")
    assert folder is not None
    with pytest.raises(AssertionError, match="newer"):
        next(read_split(folder, "train"))


def test_the_reader_is_short_and_uses_nothing_of_ours() -> None:
    source = reader_source()
    tree = ast.parse(source)
    imported = {
        alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert imported == {"base64", "json", "pathlib", "numpy", "pyarrow"}
    statements = [line for line in source.splitlines() if line and not line.startswith("import")]
    assert len(statements) <= 28


def test_the_page_tells_the_columns_and_digests_as_they_are(
    root: Store, make_manifest: Callable[..., wire.Manifest], make_rows: Callable[..., TokenRows]
) -> None:
    """Type, encoding and checksum statements of the page, held against a file."""
    loaded = commit(root, make_manifest(root, [make_rows(300, 1)]))
    shard = loaded.manifest.splits[0].shards[0]
    path = root.local_path(f"ds/{shard.path}")
    assert path is not None
    assert xxhash.xxh3_128(path.read_bytes(), seed=0).hexdigest() == shard.xxh3
    assert path.stem.endswith(shard.xxh3[:16])
    metadata = pq.ParquetFile(path).metadata
    said = metadata.metadata
    assert said[b"seit.check"].decode() == f"{xxhash.xxh3_64_intdigest(said[b'seit.tokens']):016x}"
    rows = re.findall(r"^\| `(\w+)` \| ([A-Z0-9_]+)[^|]*\| ([A-Z_]+) \|", PAGE.read_text(), re.M)
    told = {name: (kind, encoding) for name, kind, encoding in rows}
    assert list(told)[:4] == ["key", "label", "source_bytes", "tokens"]
    for number in range(metadata.num_columns):
        column = metadata.row_group(0).column(number)
        kind, encoding = told[column.path_in_schema]
        assert column.physical_type == kind
        assert encoding in column.encodings
        assert column.compression == "ZSTD"
