"""A shard file gives its rows back, and refuses to be read as anything that it is not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import FormatError, InvalidInputError, NotFoundError
from services.shards import codec, layout
from services.shards.codec import Encoding
from services.types import TokenRows
from services.wire.seit import v1 as wire

MakeRows = Callable[[int, int], TokenRows]


def sized_spec(height: int, width: int, codes: int) -> wire.TokenSpec:
    return wire.TokenSpec(grid_height=height, grid_width=width, codes=codes, channels=4)


def sized_rows(count: int, height: int, width: int, codes: int, skew: float = 0) -> TokenRows:
    rng = np.random.default_rng(3)
    share = 1 / np.arange(1, codes + 1) ** skew
    ids = rng.choice(codes, (count, height, width), p=share / share.sum()).astype(np.uint16)
    keys = [f"row {row}" for row in range(count)]
    return TokenRows(ids, rng.integers(-1, 9, count), keys, rng.integers(0, 10**12, count))


def assert_same(found: TokenRows, rows: TokenRows) -> None:
    np.testing.assert_array_equal(found.ids, rows.ids)
    np.testing.assert_array_equal(found.labels, rows.labels)
    np.testing.assert_array_equal(found.source_bytes, rows.source_bytes)
    assert list(found.keys) == list(rows.keys)


def rewritten(data: bytes, change: Callable[[dict[bytes, bytes]], None]) -> bytes:
    """The same columns under a changed description."""
    file = pq.ParquetFile(pa.BufferReader(data))
    metadata = dict(file.metadata.metadata)
    change(metadata)
    table = file.read().replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    ("height", "width", "codes", "skew", "encoding"),
    [
        (1, 1, 1, 0, Encoding.BYTE),
        (8, 8, 64, 0, Encoding.BYTE),
        (5, 3, 391, 0.6, Encoding.ESCAPE),
        (32, 32, 600, 1.0, Encoding.ESCAPE),
        (32, 32, 16_384, 0, Encoding.PLANES),
        (128, 128, 65_536, 0, Encoding.PLANES),
    ],
)
def test_rows_come_back(
    height: int, width: int, codes: int, skew: float, encoding: Encoding
) -> None:
    rows, spec = sized_rows(40, height, width, codes, skew), sized_spec(height, width, codes)
    data = layout.to_parquet(rows, spec)
    assert_same(layout.from_parquet(data, spec), rows)
    said = pq.ParquetFile(pa.BufferReader(data)).metadata.metadata[b"seit.tokens"]
    assert json.loads(said)["encoding"] == encoding


@settings(deadline=None, max_examples=30)
@given(keys=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1))
def test_keys_may_be_any_text(keys: list[str]) -> None:
    rows = sized_rows(len(keys), 2, 3, 7)
    rows = dataclasses.replace(rows, keys=keys)
    found = layout.read_rows(layout.to_parquet(rows, sized_spec(2, 3, 7)), sized_spec(2, 3, 7))
    assert found.keys() == keys
    index = np.arange(len(keys))[::-1]
    assert found.keys(index) == keys[::-1]


def test_same_rows_make_the_same_file(make_rows: MakeRows, spec: wire.TokenSpec) -> None:
    assert layout.to_parquet(make_rows(50, 1), spec) == layout.to_parquet(make_rows(50, 1), spec)


def test_levels_change_the_size_alone(spec: wire.TokenSpec) -> None:
    rows = sized_rows(64, 4, 6, 391, skew=1.0)
    rows = dataclasses.replace(rows, ids=np.tile(rows.ids[:8], (8, 1, 1)))
    files = [layout.to_parquet(rows, spec, level) for level in (1, 9, 19)]
    for data in files:
        assert_same(layout.from_parquet(data, spec), rows)
    assert len(files[2]) < len(files[0])
    for level in (0, 20):
        with pytest.raises(InvalidInputError, match=f"compression_level is {level}, valid are 1"):
            layout.to_parquet(rows, spec, level)


def test_page_checksums_are_left_out_only_behind_a_digest(spec: wire.TokenSpec) -> None:
    data = layout.to_parquet(sized_rows(8, 4, 6, 391), spec)
    place = data.index(b"row 0")  # the keys' page: zstd leaves so few bytes as they are
    damaged = data[:place] + b"raw" + data[place + 3 :]
    with pytest.raises(FormatError):
        layout.read_rows(damaged, spec)
    assert layout.read_rows(damaged, spec, digest_checked=True).keys()[0] == "raw 0"


def test_any_parquet_reader_sees_the_columns(make_rows: MakeRows, spec: wire.TokenSpec) -> None:
    rows = make_rows(30, 2)
    table = pq.read_table(pa.BufferReader(layout.to_parquet(rows, spec)))
    assert table["key"].to_pylist() == list(rows.keys)
    assert table["label"].to_pylist() == rows.labels.tolist()
    assert table["source_bytes"].to_pylist() == rows.source_bytes.tolist()


def test_files_may_be_paths(make_rows: MakeRows, spec: wire.TokenSpec, tmp_path: Path) -> None:
    rows, path = make_rows(3, 3), tmp_path / "a.parquet"
    path.write_bytes(layout.to_parquet(rows, spec))
    assert_same(layout.from_parquet(path, spec), rows)
    with pytest.raises(NotFoundError, match=r"none\.parquet"):
        layout.from_parquet(tmp_path / "none.parquet", spec)


@pytest.mark.parametrize("codes", [4, 391])
def test_no_flipped_bit_passes_unseen(codes: int) -> None:
    spec = sized_spec(4, 4, codes)
    rows = sized_rows(40, 4, 4, codes, skew=0.5)
    data = layout.to_parquet(rows, spec)
    for place in np.random.default_rng(0).integers(0, 8 * len(data), 600).tolist():
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        try:
            found = layout.from_parquet(bytes(damaged), spec)
        except FormatError:
            continue
        assert_same(found, rows)  # a bit that carries nothing


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_truncated_files_are_refused(
    make_rows: MakeRows, spec: wire.TokenSpec, share: float
) -> None:
    data = layout.to_parquet(make_rows(30, 1), spec)
    with pytest.raises(FormatError, match=r"over there: not a whole Parquet file"):
        layout.read_rows(data[: int(share * len(data))], spec, name="over there")


def test_newer_format_is_named_first(make_rows: MakeRows, spec: wire.TokenSpec) -> None:
    data = layout.to_parquet(make_rows(3, 1), spec)

    def newer(metadata: dict[bytes, bytes]) -> None:
        metadata[b"seit.format"] = b"2"
        metadata[b"seit.tokens"] = b"something that this program cannot know"

    with pytest.raises(FormatError, match="found format 2, this program reads 1: upgrade"):
        layout.from_parquet(rewritten(data, newer), spec)
    with pytest.raises(FormatError, match="not a token shard"):
        layout.from_parquet(rewritten(data, lambda metadata: metadata.clear()), spec)


def test_damaged_description_is_refused(make_rows: MakeRows, spec: wire.TokenSpec) -> None:
    def swap(metadata: dict[bytes, bytes]) -> None:
        metadata[b"seit.tokens"] = metadata[b"seit.tokens"].replace(b'"rows": 3', b'"rows": 2')

    data = layout.to_parquet(make_rows(3, 1), spec)
    with pytest.raises(FormatError, match="description of its tokens is damaged"):
        layout.from_parquet(rewritten(data, swap), spec)


def test_another_datasets_shard_is_refused(make_rows: MakeRows, spec: wire.TokenSpec) -> None:
    data = layout.to_parquet(make_rows(3, 1), spec)
    for other in (sized_spec(6, 4, 391), sized_spec(4, 6, 392)):
        with pytest.raises(FormatError, match="another dataset's shard"):
            layout.from_parquet(data, other)
    with pytest.raises(FormatError, match="holds 3 rows, the manifest says 4"):
        layout.read_rows(data, spec, rows=4)


def test_foreign_columns_are_refused(make_rows: MakeRows, spec: wire.TokenSpec) -> None:
    data = layout.to_parquet(make_rows(3, 1), spec)
    file = pq.ParquetFile(pa.BufferReader(data))
    table = file.read().drop_columns(["escape" if "escape" in file.schema.names else "label"])
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(file.metadata.metadata), sink)
    with pytest.raises(FormatError, match="where its description asks for"):
        layout.from_parquet(bytes(sink.getvalue()), spec)


def test_rows_that_do_not_fit_are_refused(make_rows: MakeRows, spec: wire.TokenSpec) -> None:
    rows = make_rows(3, 1)
    wrong = {
        "grid": dataclasses.replace(rows, ids=rows.ids.transpose(0, 2, 1)),
        "outside 0..390": dataclasses.replace(rows, ids=rows.ids + np.uint16(391)),
        "labels -2": dataclasses.replace(rows, labels=np.array([0, -2, 1])),
        "labels 0..2147483648": dataclasses.replace(rows, labels=np.array([0, 1 << 31, 1])),
        "1025 bytes": dataclasses.replace(rows, keys=["a", "b", "c" * 1025]),
        "UTF-8": dataclasses.replace(rows, keys=["a", "b", "\ud800"]),
        "1 to": TokenRows(rows.ids[:0], rows.labels[:0], [], rows.source_bytes[:0]),
    }
    for message, bad in wrong.items():
        with pytest.raises(InvalidInputError, match=message.replace(".", r"\.")):
            layout.to_parquet(bad, spec)


def test_columns_cost_what_their_entropy_asks() -> None:
    rows, spec = sized_rows(2000, 32, 32, 391, skew=0.7), sized_spec(32, 32, 391)
    data = layout.to_parquet(rows, spec)
    share = codec.count_codes(rows.ids, 391) / rows.ids.size
    entropy_bytes = -(share * np.log2(share)).sum() * rows.ids.size / 8
    group = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    sizes = {column.path_in_schema: column.total_compressed_size for column in columns}
    assert sizes["tokens"] + sizes["escape"] < 1.01 * entropy_bytes
