"""Files whose checksums are right and whose words are not: one error in words, and no other."""

from __future__ import annotations

import gzip
import json
import re
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from services.errors import FormatError, InvalidInputError
from services.shards import layout
from services.shards.coefficients import sparse, to_rows
from services.shards.column_file import Part, part_file, read_part
from services.shards.grid_hashes import read_hashes
from services.shards.manifest import LoadedManifest, dump_manifest, list_versions, parse_manifest
from services.shards.release import import_release, read_synonyms
from services.shards.release_files import ReleaseSplit, count_rows
from services.shards.store import Store
from services.stats.facts import facts_of
from services.types import TokenRows
from services.wire.seit import v1 as wire
from tests.shards.test_release import release
from tests.small_datasets import write_dataset

__all__ = ["release"]  # a fixture

SPEC = wire.TokenSpec(grid_height=2, grid_width=2, codes=4, channels=2)
DEEP = "[" * 100_000
HEADERS = [
    b"{'descr': '<i8', 'fortran_order': False, 'shape': (2,",
    b"{[]: 1}",
    b"((((",
    b"'''",
    b"{'descr': ('<i8',), 'fortran_order': False, 'shape': (2,), }",
    b"{'descr': '<i8', 'fortran_order': False, 'shape': (-2,), }",
    b"",
]


def signed(data: bytes, name: str, text: str, more: dict[str, str] | None = None) -> bytes:
    """The Parquet file with other words as its description, and their right checksum."""
    file = pq.ParquetFile(pa.BufferReader(data))
    columns = file.schema_arrow.names
    encodings = {one: layout._PARQUET_ENCODINGS.get(one, "PLAIN") for one in columns}
    said = {key.decode(): value.decode() for key, value in file.metadata.metadata.items()}
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, file.schema_arrow, compression="zstd", use_dictionary=False, store_schema=False,
        column_encoding=encodings, write_statistics=False,
    ) as writer:  # fmt: skip
        writer.write_table(file.read())
        check = xxhash.xxh3_64_hexdigest(text.encode())
        writer.add_key_value_metadata({**said, name: text, "seit.check": check, **(more or {})})
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    "change", [{"rows": float("inf")}, {"rows": -1}, {"grid": 3}, {"codes": None}, {"ranks": "é"}]
)
def test_what_a_shard_says_of_itself(change: dict[str, Any]) -> None:
    zeros = np.zeros(3, np.int64)
    good = layout.to_parquet(
        TokenRows(np.zeros((3, 2, 2), np.uint16), zeros, list("abc"), zeros), SPEC
    )
    said = json.loads(pq.ParquetFile(pa.BufferReader(good)).metadata.metadata[b"seit.tokens"])
    assert len(layout.read_rows(signed(good, "seit.tokens", json.dumps(said)), SPEC)) == 3
    for text in (json.dumps(said | change), DEEP):
        with pytest.raises(FormatError):
            layout.read_rows(signed(good, "seit.tokens", text), SPEC)


def test_what_a_column_says_of_itself() -> None:
    part = Part("c", "int32", "0" * 32, 0, 3)
    good = part_file(pa.array([1, 2, 3], pa.int32()), part)
    for text in (DEEP, "null", "NaN"):
        with pytest.raises(FormatError):
            read_part(signed(good, "seit.column", text), part, "part")


@pytest.mark.parametrize(
    "shape",
    [
        DEEP,
        "[]",
        "{}",
        '{"components": 1.5, "height": 4, "width": 4, "kept": 4}',
        '{"components": 3.0, "height": 4, "width": 4, "kept": 4}',
        '{"components": NaN, "height": 4, "width": 4, "kept": 4}',
        '{"components": "3", "height": 4, "width": 4, "kept": 4}',
    ],
)
def test_what_coefficients_say_of_their_shape(shape: str) -> None:
    part = Part("dct", "coefficients", "0" * 32, 0, 2)
    maps = np.random.default_rng(0).integers(-3, 3, (2, 12, 4, 4))
    good = part_file(pa.array(to_rows(sparse(maps, 4)), pa.binary()), part)
    text = part.describe().decode()
    right = '{"components": 3, "height": 4, "width": 4, "kept": 4}'

    def saying(shape: str) -> bytes:
        check = xxhash.xxh3_64_hexdigest(shape.encode())
        said = {"seit.coefficients": shape, "seit.coefficients.check": check}
        return signed(good, "seit.column", text, said)

    read_part(saying(right), part, "part")
    with pytest.raises(FormatError, match="cannot be read"):
        read_part(saying(shape), part, "part")


def test_a_shape_of_coefficients_that_was_damaged() -> None:
    """Another shape of as many blocks fits the streams as well: only its checksum tells."""
    part = Part("dct", "coefficients", "0" * 32, 0, 2)
    maps = np.random.default_rng(0).integers(-3, 3, (2, 12, 4, 4))
    good = part_file(pa.array(to_rows(sparse(maps, 4)), pa.binary()), part)
    right, other = (b'"height": %d, "width": %d' % sides for sides in ((4, 4), (2, 8)))
    assert right in good
    with pytest.raises(FormatError, match="shape is damaged"):
        read_part(good.replace(right, other), part, "part")
    _, values = read_part(good, part, "part")
    before = good.replace(b"seit.coefficients.check", b"seit.coefficients.other")  # as of 0.2.0
    assert np.array_equal(read_part(before, part, "part")[1], values)


@pytest.mark.parametrize("header", HEADERS)
def test_headers_of_arrays(root: Store, tmp_path: Path, header: bytes) -> None:
    data = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header
    files = ReleaseSplit(tmp_path, "a-train")
    files.index.write_bytes(gzip.compress(data))
    with pytest.raises(FormatError):
        count_rows(files)
    root.child("ds").write("assets/x.npy", data)
    digest = xxhash.xxh3_128_hexdigest(data)
    asset = wire.Asset(kind="grid-hashes", path="assets/x.npy", bytes=len(data), xxh3=digest)
    with pytest.raises(FormatError, match="not the hashes"):
        read_hashes(root, "ds", asset)


def test_synonyms_in_lists_without_end(tmp_path: Path) -> None:
    (tmp_path / "synonyms.json").write_text(DEEP)
    with pytest.raises(FormatError, match="not lists of ids"):
        read_synonyms(tmp_path / "synonyms.json", 4)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"grid": (0, 0)}, "grid is (0, 0), valid are a height and a width of 1 to 128"),
        ({"grid": (4, 0)}, "grid is (4, 0)"),
        ({"grid": (-4, -6)}, "grid is (-4, -6)"),
        ({"grid": (4, 129)}, "grid is (4, 129)"),
        ({"grid": (4, 6), "image_size": (-1, 5)}, "image_size is (-1, 5)"),
    ],
)
def test_sizes_that_no_release_has(
    release: Path, root: Store, sizes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(words)):
        import_release(release, root, "toy", **sizes)
    assert list_versions(root, "toy") == []


@pytest.mark.parametrize("lengths", [(8, 7), (7, 8), (0, 0), (9, 9)])
def test_counts_of_coefficients_are_of_all_channels(root: Store, lengths: tuple[int, int]) -> None:
    manifest = write_dataset(root).manifest
    for split in manifest.splits:
        split.coefficients = wire.CoefficientStats(nonzeros=[1] * 8, magnitudes=[2] * 8)
    facts_of(LoadedManifest(parse_manifest(dump_manifest(manifest)), "0" * 32))
    odd = wire.CoefficientStats(nonzeros=[1] * lengths[0], magnitudes=[2] * lengths[1])
    manifest.splits[0].coefficients = odd
    words = f"coefficients of {lengths[0]} and {lengths[1]} channels; expected 8"
    with pytest.raises(FormatError, match=words):
        parse_manifest(dump_manifest(manifest))


def test_names_without_number_are_compared_in_little_time(root: Store) -> None:
    """Each with each, these would take minutes."""
    manifest = write_dataset(root).manifest
    (asset,) = manifest.assets
    manifest.assets = [
        wire.Asset(kind=f"k{number}", path=asset.path, bytes=asset.bytes, xxh3=asset.xxh3)
        for number in range(100_000)
    ]
    data = dump_manifest(manifest)
    began = time.process_time()
    assert len(parse_manifest(data).assets) == 100_000
    assert time.process_time() - began < 20
