"""One shard as a Parquet file, self-contained and versioned.

    key           string        name of the source picture
    label         int32         -1 where there is none
    source_bytes  int64         size of the original image file, 0 where not known
    tokens        binary(T)     ranks, one byte a token (`codec.Columns.low`)
    tokens_high   binary(T)     encoding "planes" only
    escape        binary        encoding "escape" only, as many bytes as the row has escapes
    escape_high   binary        the same with more than 511 used codes

Key-value metadata: `seit.format` (checked before anything else), `seit.tokens`, JSON with the
rows, grid, number of codes, encoding and the codes by falling frequency, and `seit.check`, its
xxh3-64. zstd compresses each column, and every page carries a checksum. Ranks belong to the
shard, not to the dataset: data appended later keep their own optimum, and no pass over all the
data is needed first.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from services.errors import FormatError, InvalidInputError, NotFoundError
from services.shards import codec
from services.shards.codec import ByteArray, Columns, Encoding
from services.shards.footer import Chunk, column_chunks
from services.shards.pages import bytes_of, check_pages, read_text
from services.shards.shard_rows import ShardRows, errors_name
from services.types import UNLABELLED, IdArray, IntArray, TokenRows
from services.wire.seit import v1 as wire

FORMAT_VERSION = 1
MAX_COLUMN_BYTES = (1 << 31) - 1  # Arrow's binary columns count bytes in int32
MAX_KEY_BYTES = 1024
DEFAULT_COMPRESSION_LEVEL = 1
"""zstd's fastest that codes by frequency. Higher levels search further for repeats: tokens of
photographs have them, those drawn at random do not (docs/storage.md). Readers need not know."""
MAX_COMPRESSION_LEVEL = 19

_FORMAT_KEY = b"seit.format"
_TOKENS_KEY = b"seit.tokens"
_CHECK_KEY = b"seit.check"
# What JSON may lead to: numbers that are none, and lists in lists.
_NOT_SO_DESCRIBED = (ValueError, KeyError, TypeError, OverflowError, RecursionError, binascii.Error)
_PAGE_BYTES = 1 << 20
_PAGE_SLACK = 1.05  # headers and level bytes, relative to the values
_PARQUET_ENCODINGS = {
    "key": "DELTA_BYTE_ARRAY",
    "label": "PLAIN",
    "source_bytes": "DELTA_BINARY_PACKED",
    "tokens": "PLAIN",
    "tokens_high": "PLAIN",
    "escape": "DELTA_LENGTH_BYTE_ARRAY",
    "escape_high": "DELTA_LENGTH_BYTE_ARRAY",
}


def to_parquet(
    rows: TokenRows,
    spec: wire.TokenSpec,
    compression_level: int = DEFAULT_COMPRESSION_LEVEL,
) -> bytes:
    """The shard file of these rows, in the encoding that comes out smallest.

    compression_level: of zstd, 1 to 19. The same rows at the same level give the same bytes with
    the same version of pyarrow.
    Raises InvalidInputError for another level, no rows, a grid other than the spec's, ids >=
    spec.codes, labels outside -1..2^31-1, keys that are not text or longer than 1024 bytes, or too
    many rows.
    """
    measure = _zstd_bytes(check_compression_level(compression_level))
    count, tokens = len(rows), spec.grid_height * spec.grid_width
    if rows.ids.shape[1:] != (spec.grid_height, spec.grid_width):
        raise InvalidInputError(
            f"rows have a grid of {rows.ids.shape[1:]} tokens, the dataset's spec says "
            f"{(spec.grid_height, spec.grid_width)}: write them to a dataset of their own"
        )
    if not 0 < count * tokens <= MAX_COLUMN_BYTES:
        raise InvalidInputError(
            f"a shard of {count} rows of {tokens} tokens; it holds 1 to "
            f"{MAX_COLUMN_BYTES // tokens} rows: write fewer rows to a shard"
        )
    ids_NT = rows.ids.reshape(count, tokens)
    columns = codec.encode(ids_NT, spec.codes, codec.choose(ids_NT, spec.codes, measure))
    arrays = {
        "key": _key_array(rows.keys),
        "label": _label_array(rows.labels),
        "source_bytes": pa.array(rows.source_bytes, pa.int64()),
        "tokens": _fixed(columns.low),
    }
    if columns.encoding is Encoding.PLANES:
        arrays["tokens_high"] = _fixed(columns.high)
    if columns.encoding is Encoding.ESCAPE:
        arrays["escape"] = _variable(columns.offsets, columns.escape_low)
        if codec.long_escapes(len(columns.ranks)):
            arrays["escape_high"] = _variable(columns.offsets, columns.escape_high)
    schema = _schema(columns.encoding, len(columns.ranks), tokens)
    table = pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=compression_level,
        use_dictionary=False,
        column_encoding={name: _PARQUET_ENCODINGS[name] for name in schema.names},
        data_page_size=_PAGE_BYTES,
        write_page_checksum=True,
        write_statistics=False,
        store_schema=False,
    ) as writer:
        writer.write_table(table, row_group_size=count)
        writer.add_key_value_metadata(_describe(columns, spec))
    return bytes(sink.getvalue())


def check_compression_level(level: int) -> int:
    """The level; InvalidInputError outside 1..19."""
    if not 1 <= level <= MAX_COMPRESSION_LEVEL:
        raise InvalidInputError(
            f"compression_level is {level}, valid are 1 to {MAX_COMPRESSION_LEVEL}: 1 packs "
            "fastest, 9 makes shards of photographs a fifth smaller in eight times the time"
        )
    return level


def from_parquet(source: bytes | Path, spec: wire.TokenSpec) -> TokenRows:
    """All rows of a shard file. Errors as `read_rows` and `ShardRows.ids`."""
    rows = read_rows(source, spec)
    ids = rows.ids().reshape(-1, spec.grid_height, spec.grid_width)
    return TokenRows(ids, rows.labels, rows.keys(), rows.source_bytes)


def read_rows(
    source: bytes | Path,
    spec: wire.TokenSpec,
    rows: int | None = None,
    name: str = "shard",
    *,
    digest_checked: bool = False,
) -> ShardRows:
    """Decompress a shard; its ids are decoded when they are asked for.

    rows: number of rows that the manifest promises; name: what errors call the shard.
    digest_checked: the bytes are those of the manifest's xxh3, so the checksums of the pages,
        which take a fifth of the time, have nothing to add and are left out.
    Raises FormatError for a newer format, other sizes than the spec's, or damaged content. Footer
    and pages are held against spec and rows before memory is taken for the columns.
    """
    if isinstance(source, Path):
        if not source.exists():
            raise NotFoundError(f"no shard file {source}: check the path")
        name, source = str(source), source.read_bytes()
    with errors_name(name):
        checked = not digest_checked
        with pq.ParquetFile(pa.BufferReader(source), page_checksum_verification=checked) as file:
            chunks = column_chunks(source)
            encoding, ranks = _check_footer(file, chunks, spec, rows)
            schema = _schema(encoding, len(ranks), spec.grid_height * spec.grid_width)
            key_page = _check_columns(source, chunks, schema)
            keys = read_text(file, "key", key_page, MAX_KEY_BYTES)
            wanted = [column for column in schema.names if column != "key"]
            table = file.read(wanted, use_threads=False)
        return _to_rows(name, table, keys, encoding, ranks, spec)


def _schema(encoding: Encoding, used: int, tokens: int) -> pa.Schema:
    types = {
        "key": pa.string(),
        "label": pa.int32(),
        "source_bytes": pa.int64(),
        "tokens": pa.binary(tokens),
    }
    if encoding is Encoding.PLANES:
        types["tokens_high"] = pa.binary(tokens)
    if encoding is Encoding.ESCAPE:
        types["escape"] = pa.binary()
        if codec.long_escapes(used):
            types["escape_high"] = pa.binary()
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])


def _describe(columns: Columns, spec: wire.TokenSpec) -> dict[bytes, bytes]:
    tokens = {
        "rows": len(columns.low),
        "grid": [spec.grid_height, spec.grid_width],
        "codes": spec.codes,
        "encoding": columns.encoding.value,
        "ranks": base64.b64encode(columns.ranks.astype("<u2").tobytes()).decode(),
    }
    described = json.dumps(tokens).encode()
    return {
        _FORMAT_KEY: str(FORMAT_VERSION).encode(),
        _TOKENS_KEY: described,
        _CHECK_KEY: xxhash.xxh3_64_hexdigest(described).encode(),
    }


def _check_footer(
    file: pq.ParquetFile, chunks: Sequence[Chunk], spec: wire.TokenSpec, rows: int | None
) -> tuple[Encoding, IdArray]:
    """Encoding and ranks of a shard whose footer agrees with the spec; FormatError otherwise."""
    metadata = file.metadata.metadata or {}
    found = metadata.get(_FORMAT_KEY, b"none").decode(errors="replace")
    if found != str(FORMAT_VERSION):
        newer = found.isdecimal() and int(found) > FORMAT_VERSION
        remedy = "upgrade seitpp" if newer else "this is not a token shard"
        raise FormatError(f"found format {found}, this program reads {FORMAT_VERSION}: {remedy}")
    described = metadata.get(_TOKENS_KEY, b"")
    if metadata.get(_CHECK_KEY) != xxhash.xxh3_64_hexdigest(described).encode():
        raise FormatError("the description of its tokens is damaged: fetch or write it again")
    try:
        said = json.loads(described)
        grid, codes, count = tuple(said["grid"]), said["codes"], int(said["rows"])
        encoding = Encoding(said["encoding"])
        packed = base64.b64decode(said["ranks"], validate=True)
        ranks = np.frombuffer(packed, "<u2").astype(np.uint16)
    except _NOT_SO_DESCRIBED as error:
        raise FormatError(f"its description of the tokens cannot be read: {error}") from error
    if (grid, codes) != ((spec.grid_height, spec.grid_width), spec.codes):
        raise FormatError(
            f"holds grids {grid} of {codes} codes, the dataset's spec says "
            f"{(spec.grid_height, spec.grid_width)} of {spec.codes}: it is another dataset's shard"
        )
    if not 0 < len(np.unique(ranks)) == len(ranks) or int(ranks.max()) >= codes:
        raise FormatError(f"its ranks are not different codes below {codes}")
    if encoding not in codec.candidates(len(ranks)):
        raise FormatError(f"encoding {encoding} with {len(ranks)} used codes")
    if rows is not None and rows != count:
        raise FormatError(f"holds {count} rows, the manifest says {rows}: it is another shard")
    schema = _schema(encoding, len(ranks), spec.grid_height * spec.grid_width)
    _check_sizes(file, chunks, schema, count)
    return encoding, ranks


def _check_sizes(
    file: pq.ParquetFile, chunks: Sequence[Chunk], schema: pa.Schema, rows: int
) -> None:
    if not file.schema_arrow.equals(schema, check_metadata=False):
        raise FormatError(
            f"columns {file.schema_arrow.to_string()!r} where its description asks for "
            f"{schema.to_string()!r}"
        )
    tokens = schema.field("tokens").type.byte_width
    limit = MAX_COLUMN_BYTES // tokens
    if not 0 < rows <= limit:
        raise FormatError(f"holds {rows} rows of {tokens} tokens, valid are 1 to {limit}")
    if file.metadata.num_row_groups != 1:
        raise FormatError(f"holds {file.metadata.num_row_groups} row groups, expected 1")
    group = file.metadata.row_group(0)
    if [chunk.name for chunk in chunks] != schema.names:
        raise FormatError(f"its row group has other columns than {', '.join(schema.names)}")
    for chunk in chunks:
        if not file.metadata.num_rows == group.num_rows == chunk.values == rows:
            raise FormatError(f"column {chunk.name} has {chunk.values} values for {rows} rows")


def _check_columns(source: bytes, chunks: Sequence[Chunk], schema: pa.Schema) -> int:
    """Unpacked bytes of the keys' largest page; FormatError for pages that make no sense."""
    width, key_page = schema.field("tokens").type.byte_width, 0
    for chunk in chunks:
        bytes_a_row = MAX_KEY_BYTES if chunk.name == "key" else width + 16
        limit = int(chunk.values * bytes_a_row * _PAGE_SLACK) + _PAGE_BYTES
        page = check_pages(source, chunk, _PARQUET_ENCODINGS[chunk.name], limit)
        key_page = page.largest if chunk.name == "key" else key_page
    return key_page


def _to_rows(
    name: str,
    table: pa.Table,
    keys: tuple[IntArray, ByteArray],
    encoding: Encoding,
    ranks: IdArray,
    spec: wire.TokenSpec,
) -> ShardRows:
    tokens = spec.grid_height * spec.grid_width
    arrays = {name: _whole(table[name]) for name in table.column_names}
    none = np.zeros(0, np.uint8)
    offsets, escape_low, escape_high = np.zeros(0, np.int64), none, none
    if encoding is Encoding.ESCAPE:
        offsets, escape_low = bytes_of(arrays["escape"])
    if "escape_high" in arrays:
        high_offsets, escape_high = bytes_of(arrays["escape_high"])
        if not np.array_equal(high_offsets, offsets):
            raise FormatError("its two escape columns differ in length")
    low = _grid_of(arrays["tokens"], tokens)
    high = _grid_of(arrays["tokens_high"], tokens) if "tokens_high" in arrays else low[:0]
    columns = Columns(encoding, ranks, low, high, offsets, escape_low, escape_high)
    labels = _numbers_of(arrays["label"], np.int32).astype(np.int64)
    if labels.min() < UNLABELLED:
        raise FormatError(f"label {labels.min()} is below {UNLABELLED}")
    return ShardRows(
        name=name,
        columns=columns,
        labels=labels,
        source_bytes=_numbers_of(arrays["source_bytes"], np.int64),
        key_offsets=keys[0],
        key_bytes=keys[1],
    )


def _whole(column: pa.ChunkedArray) -> Any:
    # Of one chunk, too, combine_chunks makes a copy.
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    array.validate()
    return array


def _numbers_of(array: Any, kind: type[np.int32] | type[np.int64]) -> Any:
    """Values of an array without nulls. Arrow's `to_numpy` would import pandas, as in codec.py."""
    return np.frombuffer(array.buffers()[1], kind)[array.offset :][: len(array)]


def _grid_of(array: Any, tokens: int) -> ByteArray:
    values = np.frombuffer(array.buffers()[1], np.uint8)
    return values.reshape(-1, tokens)[array.offset :][: len(array)]


def _fixed(grid: ByteArray) -> Any:
    buffers = [None, pa.py_buffer(np.ascontiguousarray(grid))]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(grid.shape[1]), len(grid), buffers)


def _variable(offsets: IntArray, content: ByteArray) -> Any:
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(content)]
    return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, buffers)


def _key_array(keys: Sequence[str]) -> Any:
    try:
        array = pa.array(keys, pa.string())
    except (pa.ArrowException, UnicodeError) as error:
        raise InvalidInputError(f"keys must be text that UTF-8 can hold: {error}") from error
    longest = int(np.diff(bytes_of(array)[0]).max())
    if array.null_count or longest > MAX_KEY_BYTES:
        raise InvalidInputError(
            f"a key of {longest} bytes or none at all ({array.null_count}); a key has 0 to "
            f"{MAX_KEY_BYTES} bytes: use the path relative to the data's folder"
        )
    return array


def _label_array(labels: IntArray) -> Any:
    limit = int(np.iinfo(np.int32).max)
    if labels.min() < UNLABELLED or labels.max() > limit:
        raise InvalidInputError(
            f"labels {labels.min()}..{labels.max()} are outside {UNLABELLED}..{limit}: number the "
            f"classes from 0 and write {UNLABELLED} for rows without one"
        )
    return pa.array(labels, pa.int32())


def _zstd_bytes(level: int) -> Callable[[ByteArray], int]:
    """Compressed bytes of a column at this level."""
    packer = pa.Codec("zstd", level)
    return lambda column: int(packer.compress(pa.py_buffer(np.ascontiguousarray(column))).size)
