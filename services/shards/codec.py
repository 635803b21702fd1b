"""Token ids <-> bytes that an entropy coder packs well.

Ids become ranks: rank 0 is the most frequent code of the shard. With skewed codes nearly all
ranks are below 255, so one byte a token holds them, and zstd's Huffman stage behind it comes
within 1 % of the order-0 entropy. Three forms, by the number U of codes that a shard uses:

    BYTE    U <= 256: one byte a token.
    ESCAPE  one byte a token; 255 says that the rank stands in the row's escapes as rank - 255,
            in one byte for U <= 511 and in two byte columns beyond.
    PLANES  low and high byte of the rank in two grids; wins where many codes are about equal.

`Encoded` is the form in memory: any rows in any order are one gather. `Columns` is the form in
a file: byte columns only. `pack` and `unpack` lead from one to the other.

Shapes: N rows, T tokens of a row, U used codes, E escaped tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from services.errors import FormatError, InvalidInputError
from services.types import MAX_CODES, MAX_GRID, IdArray, IntArray

ByteArray = npt.NDArray[np.uint8]
PatchArray = npt.NDArray[np.uint32]

ESCAPE_BYTE = 255
_BYTE_CODES = 256
_SHORT_ESCAPE_CODES = ESCAPE_BYTE + _BYTE_CODES
_SAMPLE_TOKENS = 1 << 20


class Encoding(StrEnum):
    """How a shard's tokens stand in its columns."""

    BYTE = "byte"
    ESCAPE = "escape"
    PLANES = "planes"


@dataclass(frozen=True)
class Encoded:
    """Tokens ready for random access; every array may be an `np.memmap`.

    ranks: (U,) uint16, the used codes by falling frequency.
    main: (N, T). BYTE and ESCAPE: uint8 ranks. PLANES: uint16 ids, which take no more memory
        than two byte planes and need no look-up.
    offsets: (N + 1,) int64, ESCAPE only (else empty): where a row's patches begin and end.
    patches: (E,) uint32, ESCAPE only (else empty): column << 16 | id of each escaped token.
    """

    encoding: Encoding
    ranks: IdArray
    main: ByteArray | IdArray
    offsets: IntArray
    patches: PatchArray

    def __len__(self) -> int:
        return len(self.main)


@dataclass(frozen=True)
class Columns:
    """The same tokens as byte columns.

    low: (N, T) ranks, their low bytes, or 255 for an escape.
    high: (N, T) for PLANES, else (0, T).
    offsets: (N + 1,) int64 for ESCAPE, else empty.
    escape_low: (E,) low bytes of rank - 255; escape_high: (E,) high bytes for U > 511, else (0,).
    """

    low: ByteArray
    high: ByteArray
    offsets: IntArray
    escape_low: ByteArray
    escape_high: ByteArray


def candidates(used: int) -> tuple[Encoding, ...]:
    """Forms worth measuring for a shard that uses `used` codes."""
    return (Encoding.BYTE,) if used <= _BYTE_CODES else (Encoding.ESCAPE, Encoding.PLANES)


def long_escapes(used: int) -> bool:
    """Whether an escaped rank needs two bytes."""
    return used > _SHORT_ESCAPE_CODES


def encode(ids_NT: IdArray, codes: int, encoding: Encoding | None = None) -> Encoded:
    """Rank-encode (N, T) uint16 ids below `codes`; without loss for every grid up to 128 x 128.

    encoding: one of `candidates` for the ids at hand; by default the first of them.
    Raises InvalidInputError for an id outside 0..codes-1 or sizes beyond the limits.
    """
    if ids_NT.ndim != 2 or not 1 <= ids_NT.shape[1] <= MAX_GRID**2:
        raise InvalidInputError(
            f"ids have shape {ids_NT.shape}; a shard takes (rows, tokens) with 1 to "
            f"{MAX_GRID**2} tokens a row: flatten the grids or use smaller ones"
        )
    counts = count_codes(ids_NT, codes)
    order = np.argsort(-counts, kind="stable")
    ranks = order[: np.count_nonzero(counts)].astype(np.uint16)
    allowed = candidates(len(ranks))
    form = encoding or allowed[0]
    if form not in allowed:
        raise InvalidInputError(
            f"encoding {form} does not suit {len(ranks)} used codes, which take "
            f"{' or '.join(allowed)}: ask for one of those"
        )
    offsets, patches = np.zeros(0, np.int64), np.zeros(0, np.uint32)
    if form is Encoding.PLANES:
        return Encoded(form, ranks, np.ascontiguousarray(ids_NT), offsets, patches)
    rank_NT = _inverse(ranks, codes)[ids_NT]
    if form is Encoding.BYTE:
        return Encoded(form, ranks, rank_NT.astype(np.uint8), offsets, patches)
    main = np.minimum(rank_NT, ESCAPE_BYTE).astype(np.uint8)
    offsets, columns = _escapes(main)
    escaped = rank_NT[np.repeat(np.arange(len(main)), np.diff(offsets)), columns]
    return Encoded(form, ranks, main, offsets, _place(columns, ranks[escaped]))


def choose(ids_NT: IdArray, codes: int, measure: Callable[[ByteArray], int]) -> Encoding:
    """The form of the smallest size, `measure` giving the compressed bytes of a column.

    Looks at rows spread over the whole shard, at most a million tokens.
    """
    used = int(np.count_nonzero(count_codes(ids_NT, codes)))
    forms = candidates(used)
    if len(forms) == 1:
        return forms[0]
    step = -(-ids_NT.size // _SAMPLE_TOKENS)
    sample = ids_NT[::step]
    if np.count_nonzero(count_codes(sample, codes)) <= _BYTE_CODES:
        return Encoding.ESCAPE

    def size(form: Encoding) -> int:
        columns = pack(encode(sample, codes, form))
        parts = (columns.low, columns.high, columns.escape_low, columns.escape_high)
        return sum(measure(part) for part in parts)

    return min(forms, key=size)


def decode(encoded: Encoded) -> IdArray:
    """All ids, (N, T) uint16."""
    return _decode(encoded, np.asarray(encoded.main), np.arange(len(encoded), dtype=np.int64))


def decode_rows(encoded: Encoded, index: IntArray) -> IdArray:
    """Ids of any rows in any order: (n,) int64 row numbers -> (n, T) uint16.

    Raises InvalidInputError for a row number outside 0..N-1.
    """
    rows = len(encoded)
    if len(index) and (index.min() < 0 or index.max() >= rows):
        raise InvalidInputError(
            f"row numbers {index.min()}..{index.max()} of a shard with rows 0..{rows - 1}: "
            "leave out rows that do not exist (-1) before the gather"
        )
    # A plain view first: memmap arithmetic is slower.
    return _decode(encoded, np.asarray(encoded.main).take(index, axis=0), index)


def _decode(encoded: Encoded, main: npt.NDArray[Any], index: IntArray) -> IdArray:
    """Ids of the rows `index` (n,), whose part of `encoded.main` is `main` (n, T)."""
    if encoded.encoding is Encoding.PLANES:
        return main.astype(np.uint16)
    table = np.zeros(_BYTE_CODES, np.uint16)
    table[: len(encoded.ranks)] = encoded.ranks[:_BYTE_CODES]
    ids_NT = _look_up(table, main.astype(np.uint8, copy=False))
    _patch(encoded, index, ids_NT.reshape(-1))
    return ids_NT


def pack(encoded: Encoded) -> Columns:
    """Byte columns of the encoded rows, for a file."""
    none = np.zeros(0, np.uint8)
    empty = np.zeros((0, encoded.main.shape[1]), np.uint8)
    inverse = _inverse(encoded.ranks, MAX_CODES)
    if encoded.encoding is Encoding.PLANES:
        low, high = _split(inverse[encoded.main])
        return Columns(low, high, encoded.offsets, none, none)
    low = encoded.main.astype(np.uint8, copy=False)
    if encoded.encoding is Encoding.BYTE:
        return Columns(low, empty, encoded.offsets, none, none)
    escape_low, escape_high = _split(inverse[encoded.patches & 0xFFFF] - np.uint16(ESCAPE_BYTE))
    if not long_escapes(len(encoded.ranks)):
        escape_high = none
    return Columns(low, empty, encoded.offsets, escape_low, escape_high)


def unpack(encoding: Encoding, ranks: IdArray, columns: Columns) -> Encoded:
    """The inverse of `pack`. Raises FormatError where columns and ranks do not fit together."""
    used = len(ranks)
    if encoding is Encoding.PLANES:
        rank_NT = columns.high.astype(np.uint16) << np.uint16(8) | columns.low
        _check_ranks(rank_NT, used)
        return Encoded(encoding, ranks, ranks[rank_NT], columns.offsets, np.zeros(0, np.uint32))
    if encoding is Encoding.BYTE:
        _check_ranks(columns.low, used)
        return Encoded(encoding, ranks, columns.low, columns.offsets, np.zeros(0, np.uint32))
    offsets, places = _escapes(columns.low)
    sizes = {
        len(columns.escape_low),
        len(columns.escape_high) if long_escapes(used) else len(places),
    }
    if not np.array_equal(offsets, columns.offsets) or sizes != {len(places)}:
        raise FormatError(
            f"the tokens hold {len(places)} escape marks but the escape columns "
            f"{len(columns.escape_low)} values, or in other rows: the shard is damaged, "
            "fetch or write it again"
        )
    rank_E = columns.escape_low.astype(np.uint32)
    if long_escapes(used):
        rank_E += columns.escape_high.astype(np.uint32) << 8
    rank_E += ESCAPE_BYTE
    _check_ranks(rank_E, used)
    return Encoded(encoding, ranks, columns.low, offsets, _place(places, ranks[rank_E]))


def count_codes(ids: IdArray, codes: int) -> IntArray:
    """Occurrences of each code, (K,) int64. Raises InvalidInputError for ids >= codes."""
    if not 1 <= codes <= MAX_CODES:
        raise InvalidInputError(
            f"codes is {codes}; a codebook has 1 to {MAX_CODES} codes, as ids travel in 16 bits: "
            "restrict the codebook to the codes in use"
        )
    counts = np.zeros(codes, np.int64)
    step = _SAMPLE_TOKENS  # bincount widens its input to 8 bytes an id
    flat = ids.reshape(-1)
    for start in range(0, len(flat), step):
        part = np.bincount(flat[start : start + step], minlength=codes)
        if len(part) > codes:
            raise InvalidInputError(
                f"id {len(part) - 1} is outside 0..{codes - 1}, so no codebook entry stands "
                "behind it: the tokens belong to another codebook, or the spec's codes is wrong"
            )
        counts += part
    return counts


def _look_up(table: IdArray, bytes_NT: ByteArray) -> IdArray:
    """table[bytes]. By Arrow: numpy widens each index to 8 bytes first, which takes far longer."""
    if not bytes_NT.size:
        return np.zeros(bytes_NT.shape, np.uint16)
    flat = np.ascontiguousarray(bytes_NT).reshape(-1)
    index = pa.Array.from_buffers(pa.uint8(), flat.size, [None, pa.py_buffer(flat)])
    found = pc.take(pa.array(table), index, boundscheck=False)  # a byte is below 256
    return np.frombuffer(found.buffers()[1], np.uint16, flat.size).reshape(bytes_NT.shape)


def _patch(encoded: Encoded, rows: IntArray, flat: IdArray) -> None:
    """Set the escaped tokens of `rows` in their decoded, flattened ids."""
    if encoded.encoding is not Encoding.ESCAPE:
        return
    begin = encoded.offsets[rows]
    lengths = encoded.offsets[rows + 1] - begin
    end = np.cumsum(lengths)
    source = np.arange(end[-1] if len(end) else 0)  # (e,) position in `patches`
    source += np.repeat(begin - (end - lengths), lengths)
    patches = np.asarray(encoded.patches).take(source)
    target = np.repeat(np.arange(len(rows)) * encoded.main.shape[1], lengths)
    target += patches >> 16
    flat[target] = patches.astype(np.uint16)


def _escapes(main: ByteArray) -> tuple[IntArray, PatchArray]:
    """Row offsets (N + 1,) and columns (E,) of the escape marks in (N, T) bytes."""
    marks = np.flatnonzero(main == ESCAPE_BYTE)
    row_starts = np.arange(len(main) + 1) * main.shape[1]
    offsets = np.searchsorted(marks, row_starts).astype(np.int64)
    columns = marks - np.repeat(row_starts[:-1], np.diff(offsets))
    return offsets, columns.astype(np.uint32)


def _place(columns: PatchArray, ids: IdArray) -> PatchArray:
    return columns << np.uint32(16) | ids


def _inverse(ranks: IdArray, codes: int) -> IdArray:
    inverse = np.zeros(codes, np.uint16)
    inverse[ranks] = np.arange(len(ranks), dtype=np.uint16)
    return inverse


def _split(values: IdArray) -> tuple[ByteArray, ByteArray]:
    return (values & 0xFF).astype(np.uint8), (values >> 8).astype(np.uint8)


def _check_ranks(values: npt.NDArray[np.integer], used: int) -> None:
    if values.size and int(values.max()) >= used:
        raise FormatError(
            f"rank {int(values.max())} in a shard of {used} used codes (0..{used - 1}): "
            "the shard is damaged, fetch or write it again"
        )
