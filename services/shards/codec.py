"""Token ids <-> bytes that an entropy coder packs well.

Ids become ranks: rank 0 is the most frequent code of the shard. With skewed codes nearly all
ranks are below 255, so one byte a token holds them, and zstd's Huffman stage behind it comes
within 1 % of the order-0 entropy. Three forms, by the number U of codes that a shard uses:

    BYTE    U <= 256: one byte a token.
    ESCAPE  one byte a token; 255 says that the rank stands in the row's escapes as rank - 255,
            in one byte for U <= 511 and in two byte columns beyond.
    PLANES  low and high byte of the rank in two grids; wins where many codes are about equal.

Shapes: N rows, T tokens of a row, U used codes, E escaped tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

ESCAPE_BYTE = 255
_BYTE_CODES = 256
_SHORT_ESCAPE_CODES = ESCAPE_BYTE + _BYTE_CODES
_SAMPLE_TOKENS = 1 << 20
_PART_TOKENS = 1 << 18  # what a core's cache holds beside its ids and masks
_PAIRS = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)  # the two bytes of each 16-bit number


class Encoding(StrEnum):
    """How a shard's tokens stand in its columns."""

    BYTE = "byte"
    ESCAPE = "escape"
    PLANES = "planes"


@dataclass(frozen=True)
class Columns:
    """Tokens of N rows as byte columns.

    ranks: (U,) uint16, the used codes by falling frequency.
    low: (N, T) ranks, their low bytes, or 255 for an escape.
    high: (N, T) for PLANES, else (0, T).
    offsets: (N + 1,) int64 for ESCAPE, else empty: where a row's escapes begin and end.
    escape_low: (E,) low bytes of rank - 255; escape_high: (E,) high bytes for U > 511, else (0,).
    """

    encoding: Encoding
    ranks: IdArray
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


def encode(ids_NT: IdArray, codes: int, encoding: Encoding | None = None) -> Columns:
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
    rank_NT = _inverse(ranks, codes)[ids_NT]
    none, empty = np.zeros(0, np.uint8), np.zeros((0, ids_NT.shape[1]), np.uint8)
    offsets = np.zeros(0, np.int64)
    if form is Encoding.PLANES:
        return Columns(form, ranks, *_split(rank_NT), offsets, none, none)
    if form is Encoding.BYTE:
        return Columns(form, ranks, rank_NT.astype(np.uint8), empty, offsets, none, none)
    low = np.minimum(rank_NT, ESCAPE_BYTE).astype(np.uint8)
    places = _escapes(low)
    offsets = np.searchsorted(places, _row_starts(*low.shape)).astype(np.int64)
    escape_low, escape_high = _split(rank_NT.reshape(-1)[places] - np.uint16(ESCAPE_BYTE))
    if not long_escapes(len(ranks)):
        escape_high = none
    return Columns(form, ranks, low, empty, offsets, escape_low, escape_high)


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
        columns = encode(sample, codes, form)
        parts = (columns.low, columns.high, columns.escape_low, columns.escape_high)
        return sum(measure(part) for part in parts)

    return min(forms, key=size)


def decode(columns: Columns) -> IdArray:
    """All ids, (N, T) uint16. Raises FormatError where the columns do not fit together."""
    ids_NT = np.empty(columns.low.shape, np.uint16)
    at = 0
    for part in decode_parts(columns):
        ids_NT[at : at + len(part)] = part
        at += len(part)
    return ids_NT


def decode_parts(columns: Columns) -> Iterator[IdArray]:
    """All ids, some rows at a time: (n, T) uint16. A part is made while a core's cache holds it,
    and whoever writes it down needs no memory for the whole shard.

    Raises FormatError at the first part whose columns do not fit together.
    """
    ranks, used, tokens = columns.ranks, len(columns.ranks), columns.low.shape[1]
    size = max(1, _PART_TOKENS // tokens)
    parts = [slice(at, at + size) for at in range(0, len(columns.low), size)]
    if columns.encoding is Encoding.PLANES:
        for part in parts:
            rank_NT = columns.high[part].astype(np.uint16) << np.uint16(8) | columns.low[part]
            _check_ranks(rank_NT, used)
            yield _look_up(ranks, rank_NT)
        return
    table = np.zeros(_BYTE_CODES, np.uint16)
    table[:used] = ranks[:_BYTE_CODES]
    pairs = table[_PAIRS].view(np.uint32)
    if columns.encoding is Encoding.BYTE:
        for part in parts:
            _check_ranks(columns.low[part], used)
            yield _look_up_bytes(table, pairs, columns.low[part])
        return
    rank_E = _escaped_ranks(columns)
    for part in parts:
        low = columns.low[part]
        places = _escapes(low)
        ids_NT = _look_up_bytes(table, pairs, low)
        ids_NT.reshape(-1)[places] = ranks.take(rank_E[_part_of_escapes(columns, part, places)])
        yield ids_NT


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


def _look_up_bytes(table: IdArray, pairs: npt.NDArray[np.uint32], bytes_NT: ByteArray) -> IdArray:
    """table[bytes], table (256,). Two bytes at a time, in pairs, where their number is even."""
    flat = np.ascontiguousarray(bytes_NT).reshape(-1)
    if flat.size % 2:
        return _look_up(table, flat).reshape(bytes_NT.shape)
    return _look_up(pairs, flat.view(np.uint16)).view(np.uint16).reshape(bytes_NT.shape)


def _look_up(table: npt.NDArray[Any], index: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """table[index], of unsigned integers, the index known to be in range.

    By Arrow: numpy widens each index to 8 bytes first, which takes far longer.
    """
    if not index.size:
        return np.zeros(index.shape, table.dtype)
    found = pc.take(_arrow(table), _arrow(index), boundscheck=False)
    return np.frombuffer(found.buffers()[1], table.dtype, index.size).reshape(index.shape)


def _arrow(numbers: npt.NDArray[Any]) -> Any:
    """The flat numbers as Arrow's. `pa.array` would import pandas first, which takes half a second
    of a process that only fetches.
    """
    flat = np.ascontiguousarray(numbers).reshape(-1)
    kind = pa.from_numpy_dtype(flat.dtype)
    return pa.Array.from_buffers(kind, flat.size, [None, pa.py_buffer(flat)])


def _escapes(low: ByteArray) -> IntArray:
    """Flat positions of the escape marks in (N, T) bytes.

    A plain search for so many places, at random, is slow by the branches that it mispredicts.
    Here each step is without: 8 marks become a byte, and the bytes that are not 0, of which an
    eighth or more are marks, become marks again.
    """
    flat = low.reshape(-1)
    found = [np.zeros(0, np.int64)]
    for start in range(0, flat.size, _PART_TOKENS):
        packed = np.packbits(flat[start : start + _PART_TOKENS] == ESCAPE_BYTE, bitorder="little")
        byte = np.flatnonzero(packed != 0)
        bit = np.flatnonzero(np.unpackbits(packed[byte], bitorder="little").view(np.bool_))
        places = (byte * 8 + start).take(bit >> 3)
        places += bit & 7
        found.append(places)
    return np.concatenate(found)


def _row_starts(rows: int, tokens: int) -> IntArray:
    """Flat positions (rows + 1,) where rows begin, and the last ends."""
    starts: IntArray = np.arange(rows + 1) * tokens
    return starts


def _escaped_ranks(columns: Columns) -> npt.NDArray[np.uint32]:
    """(E,) the ranks that the escapes hold, once their columns belong together."""
    used, rows, escapes = len(columns.ranks), len(columns.low), len(columns.escape_low)
    rank_E = columns.escape_low.astype(np.uint32)
    if long_escapes(used):
        if len(columns.escape_high) != escapes:
            raise _misplaced(f"{escapes} low and {len(columns.escape_high)} high bytes of escapes")
        rank_E += columns.escape_high.astype(np.uint32) << 8
    rank_E += ESCAPE_BYTE
    _check_ranks(rank_E, used)
    offsets = columns.offsets
    if len(offsets) != rows + 1 or (offsets[0], offsets[-1]) != (0, escapes):
        raise _misplaced(f"{escapes} escapes, of which its {rows} rows have others")
    return rank_E


def _part_of_escapes(columns: Columns, part: slice, places: IntArray) -> slice:
    """Which of all escapes are those of some rows, whose marks stand at these flat positions."""
    bounds = columns.offsets[part.start : part.stop + 1]
    starts = _row_starts(len(bounds) - 1, columns.low.shape[1])
    if not np.array_equal(np.searchsorted(places, starts), bounds - bounds[0]):
        raise _misplaced(
            f"other numbers of escapes than of marks in rows {part.start} to"
            f" {part.start + len(bounds) - 2}"
        )
    return slice(int(bounds[0]), int(bounds[-1]))


def _misplaced(what: str) -> FormatError:
    return FormatError(f"the tokens hold {what}: the shard is damaged, fetch or write it again")


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
