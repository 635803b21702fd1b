"""Coefficients of a transform, most of them 0, without loss: a row's own form, and a file's.

A row of a map of G components, h x w blocks and Q coefficients a block (channel g * Q + q) is

    header     G, h, w, Q, as little-endian uint16
    counts     (G * h * w) uint8, coefficients of each block that are not 0
    positions  (E) uint8, q of each of them, rising within a block
    values     (E) int16, little-endian

which any row can be read from by itself. In a file the rows of a part are taken apart into streams
of numbers of one kind each, so that an entropy coder sees each kind's own distribution, as JPEG
does with its two tables (`to_streams`). For each component:

    dc       of each block, coefficient 0 less that of the block to its left (above, in column 0)
    count    of each block, its other coefficients that are not 0
    run p    of each of these that follows one at position p (the first: p = 0): zeros in between;
             first all first ones of the blocks, then all second ones, and so on
    value q  of each block where coefficient q > 0 is not 0: it

dc and values are whole numbers z folded to 2z or -2z - 1. Those below 255 take one byte; a byte 255
says that the number stands in the last stream, `escape`, in four.

Shape letters: N rows, G components, T = h * w blocks of a component, B = G * T, Q coefficients of a
block, D = G * Q channels, E coefficients that are not 0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from services.errors import FormatError, InvalidInputError
from services.types import MAX_GRID, IntArray

ByteArray = npt.NDArray[np.uint8]
CoefficientArray = npt.NDArray[np.int16]

MAX_KEPT = 255
"""Most coefficients of a block: a position, and a count, is one byte."""

MAX_COMPONENTS = 255

_HEADER = struct.Struct("<4H")
_ESCAPE = 255
_KINDS = ("dc", "count", "run", "value", "escape")


@dataclass(frozen=True)
class MapShape:
    """Of one row: components G, height and width in blocks, kept coefficients Q of a block."""

    components: int
    height: int
    width: int
    kept: int

    def __post_init__(self) -> None:
        if not (
            1 <= self.components <= MAX_COMPONENTS
            and 1 <= self.height <= MAX_GRID
            and 1 <= self.width <= MAX_GRID
            and 1 <= self.kept <= MAX_KEPT
        ):
            raise FormatError(
                f"{self}: valid are 1 to {MAX_COMPONENTS} components, 1 to {MAX_GRID} blocks along"
                f" each side and 1 to {MAX_KEPT} coefficients"
            )

    @property
    def blocks(self) -> int:
        """B."""
        return self.components * self.height * self.width

    @property
    def channels(self) -> int:
        """D."""
        return self.components * self.kept


@dataclass(frozen=True)
class Sparse:
    """Rows of one shape. counts: (N, B). positions: (E,). values: (E,), none of them 0."""

    shape: MapShape
    counts: ByteArray
    positions: ByteArray
    values: CoefficientArray


@dataclass(frozen=True)
class Stream:
    """Numbers of one kind: (component, index) is (g, p), (g, q), (g, 0), or (0, 0)."""

    kind: str
    component: int
    index: int
    data: bytes


def sparse(maps_NDhw: npt.NDArray[Any], kept: int) -> Sparse:
    """The coefficients of maps of whole numbers that are not 0; D is a multiple of `kept`.

    Raises: InvalidInputError for numbers beyond 16 bits, or more than `MAX_KEPT` a block.
    """
    count, channels, height, width = maps_NDhw.shape
    if channels % kept or kept > MAX_KEPT:
        raise InvalidInputError(
            f"{channels} channels of {kept} coefficients a block: valid are whole components and at"
            f" most {MAX_KEPT} coefficients; keep fewer"
        )
    bounds = np.iinfo(np.int16)
    if maps_NDhw.size and not bounds.min <= maps_NDhw.min() <= maps_NDhw.max() <= bounds.max:
        raise InvalidInputError(
            f"coefficients {maps_NDhw.min():g} to {maps_NDhw.max():g} are beyond 16 bits: use a"
            " larger quantisation step"
        )
    shape = MapShape(channels // kept, height, width, kept)
    planes = maps_NDhw.reshape(count, shape.components, kept, height * width)
    blocks = planes.transpose(0, 1, 3, 2).reshape(count, shape.blocks, kept)
    there = blocks != 0
    return Sparse(
        shape,
        there.sum(2).astype(np.uint8),
        np.broadcast_to(np.arange(kept, dtype=np.uint8), there.shape)[there],
        blocks[there].astype(np.int16),
    )


def dense(rows: Sparse) -> CoefficientArray:
    """(N, D, h, w) int16, the inverse of `sparse`."""
    shape, count = rows.shape, len(rows.counts)
    blocks = np.zeros((count * shape.blocks, shape.kept), np.int16)
    blocks[np.repeat(np.arange(len(blocks)), rows.counts.ravel()), rows.positions] = rows.values
    tokens = shape.height * shape.width
    planes = blocks.reshape(count, shape.components, tokens, shape.kept).transpose(0, 1, 3, 2)
    size = count, shape.channels, shape.height, shape.width
    return np.ascontiguousarray(planes).reshape(size)


def to_rows(rows: Sparse) -> list[bytes]:
    """Each row in its own form."""
    shape = rows.shape
    header = _HEADER.pack(shape.components, shape.height, shape.width, shape.kept)
    ends = np.cumsum(rows.counts.sum(1, dtype=np.int64)).tolist()
    values = rows.values.astype("<i2", copy=False)
    return [
        b"".join((header, counts.tobytes(), rows.positions[a:b].tobytes(), values[a:b].tobytes()))
        for counts, a, b in zip(rows.counts, [0, *ends[:-1]], ends, strict=True)
    ]


def from_rows(rows: Sequence[bytes]) -> Sparse:
    """The inverse of `to_rows`, of one row or more; FormatError for anything else."""
    shapes = {row[: _HEADER.size] for row in rows}
    if len(shapes) != 1 or len(next(iter(shapes))) < _HEADER.size:
        raise FormatError(f"{len(rows)} rows of coefficients have {len(shapes)} shapes, not one")
    shape = MapShape(*_HEADER.unpack(shapes.pop()))
    begin = _HEADER.size + shape.blocks
    counts, positions, values = [], [], []
    for row in rows:
        data = np.frombuffer(row, np.uint8)
        own = data[_HEADER.size : begin]
        entries = int(own.sum(dtype=np.int64))
        if len(data) != begin + 3 * entries:
            raise FormatError(f"a row of coefficients has {len(data)} bytes for {entries} of them")
        counts.append(own)
        positions.append(data[begin : begin + entries])
        values.append(np.frombuffer(row, "<i2", entries, begin + entries))
    found = Sparse(
        shape,
        np.stack(counts),
        np.concatenate(positions),
        np.concatenate(values).astype(np.int16, copy=False),
    )
    if found.positions.size and int(found.positions.max()) >= shape.kept:
        raise FormatError(f"a coefficient at position {found.positions.max()} of {shape.kept}")
    return found


def to_streams(rows: Sparse) -> list[Stream]:
    """All rows taken apart into streams, always in the same order; empty ones are left out."""
    shape = rows.shape
    tokens = shape.height * shape.width
    counts = rows.counts.ravel().astype(np.int64)  # (N * B,)
    block = np.repeat(np.arange(len(counts)), counts)  # (E,)
    first = np.zeros(len(counts), np.int64)
    at_zero = rows.positions == 0
    first[block[at_zero]] = rows.values[at_zero]
    component = np.arange(len(counts)) % shape.blocks // tokens  # of each block
    rest = counts.copy()
    rest[block[at_zero]] -= 1
    block, position, value = block[~at_zero], rows.positions[~at_zero], rows.values[~at_zero]
    starts = np.cumsum(rest) - rest
    order = np.arange(len(block)) - starts[block]  # k of each
    before = np.zeros(len(block), np.int64)
    before[1:] = position[:-1]
    before[order == 0] = 0
    run = (position - before - 1).astype(np.uint8)
    predicted = first - _neighbour(first.reshape(-1, shape.height, shape.width)).ravel()

    found: list[Stream] = []
    escapes: list[npt.NDArray[np.uint32]] = []

    def add(kind: str, g: int, index: int, numbers: npt.NDArray[Any]) -> None:
        if not len(numbers):
            return
        low = numbers.astype(np.uint8)
        if kind in ("dc", "value"):
            folded = np.where(numbers >= 0, 2 * numbers, -2 * numbers - 1)
            low = np.minimum(folded, _ESCAPE).astype(np.uint8)
            escapes.append(folded[low == _ESCAPE].astype("<u4"))
        found.append(Stream(kind, g, index, low.tobytes()))

    owner = component[block]
    for g in range(shape.components):
        own = component == g
        add("dc", g, 0, predicted[own])
        add("count", g, 0, rest[own])
        mine = owner == g
        by_order = np.argsort(order[mine].astype(np.uint8), kind="stable")
        for p, numbers in _grouped(before[mine][by_order], run[mine][by_order]):
            add("run", g, p, numbers)
        for q, numbers in _grouped(position[mine].astype(np.int64), value[mine].astype(np.int64)):
            add("value", g, q, numbers)
    escaped = np.concatenate([np.zeros(0, "<u4"), *escapes])
    if len(escaped):
        found.append(Stream("escape", 0, 0, escaped.tobytes()))
    return found


def from_streams(streams: Sequence[Stream], shape: MapShape, count: int) -> Sparse:
    """The inverse of `to_streams` for N = `count` rows; FormatError where they do not fit."""
    by_place = {(one.kind, one.component, one.index): one.data for one in streams}
    if len(by_place) != len(streams) or any(one.kind not in _KINDS for one in streams):
        raise FormatError("streams of coefficients that stand twice, or of an unknown kind")
    tokens = shape.height * shape.width
    blocks = count * shape.blocks
    raw = by_place.pop(("escape", 0, 0), b"")
    if len(raw) % 4:
        raise FormatError(f"stream escape has {len(raw)} bytes, four a number")
    escaped = np.frombuffer(raw, "<u4").astype(np.int64)
    used = 0

    def take(kind: str, g: int, index: int, size: int | None) -> npt.NDArray[Any]:
        nonlocal used
        data = by_place.pop((kind, g, index), b"") if size != 0 else b""
        size = len(data) if size is None else size
        if len(data) != size:
            raise FormatError(f"stream {kind} {g}, {index} has {len(data)} numbers, not {size}")
        numbers = np.frombuffer(data, np.uint8)
        if kind not in ("dc", "value"):
            return numbers
        folded = numbers.astype(np.int64)
        places = np.flatnonzero(numbers == _ESCAPE)
        if used + len(places) > len(escaped):
            raise FormatError("fewer escaped coefficients than the streams ask for")
        folded[places] = escaped[used : used + len(places)]
        used += len(places)
        return np.where(folded & 1, -(folded >> 1) - 1, folded >> 1)

    component = np.arange(blocks) % shape.blocks // tokens
    predicted, rest = np.zeros(blocks, np.int64), np.zeros(blocks, np.int64)
    position = np.zeros(0, np.int64)
    value = np.zeros(0, np.int64)
    parts: list[tuple[IntArray, IntArray, IntArray]] = []
    for g in range(shape.components):
        own = np.flatnonzero(component == g)
        predicted[own] = take("dc", g, 0, len(own))
        rest[own] = take("count", g, 0, len(own))
        if len(own) and int(rest[own].max()) >= shape.kept:
            raise FormatError(f"a block with {rest[own].max()} of {shape.kept - 1} coefficients")
        parts.append(_component(take, g, own, rest[own], shape.kept))
    if by_place or used != len(escaped):
        raise FormatError("streams of coefficients are left over")
    block, position, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    first = _undo(predicted.reshape(-1, shape.height, shape.width)).ravel()
    return _merged(shape, first, block, position, value)


def _component(
    take: Any, g: int, own: IntArray, rest: IntArray, kept: int
) -> tuple[IntArray, IntArray, IntArray]:
    """(block, position, value) of the coefficients of one component, by block."""
    total = int(rest.sum())
    starts = np.cumsum(rest) - rest
    runs = [take("run", g, p, None) for p in range(kept)]
    used = np.zeros(kept, np.int64)
    position, at = np.zeros(total, np.int64), np.zeros(len(own), np.int64)
    for k in range(int(rest.max(initial=0))):
        there = np.flatnonzero(rest > k)
        for p, blocks in _grouped(at[there], there):
            found = runs[p][used[p] : used[p] + len(blocks)]
            if len(found) < len(blocks):
                raise FormatError(f"stream run {g}, {p} has {len(runs[p])} numbers, too few")
            used[p] += len(blocks)
            at[blocks] += found.astype(np.int64) + 1
        if len(there) and int(at[there].max()) >= kept:
            raise FormatError(f"a coefficient at position {at[there].max()} of {kept}")
        position[starts[there] + k] = at[there]
    if any(len(one) != count for one, count in zip(runs, used.tolist(), strict=True)):
        raise FormatError("runs of coefficients are left over")
    value = np.zeros(total, np.int64)
    for q, places in _grouped(position, np.arange(total)):
        value[places] = take("value", g, q, len(places))
    if total and not value.all():
        raise FormatError("a coefficient of 0 among those that are not")
    return np.repeat(own, rest), position, value


def _merged(
    shape: MapShape, first: IntArray, block: IntArray, position: IntArray, value: IntArray
) -> Sparse:
    """Coefficients 0 and the others together, by block and position."""
    zero = np.flatnonzero(first)
    blocks = np.concatenate([zero, block])
    order = np.argsort(blocks, kind="stable")  # coefficient 0 came first
    values = np.concatenate([first[zero], value])[order]
    bounds = np.iinfo(np.int16)
    if len(values) and not bounds.min <= values.min() <= values.max() <= bounds.max:
        raise FormatError(f"coefficients {values.min()} to {values.max()} are beyond 16 bits")
    counts = np.bincount(blocks, minlength=len(first)).astype(np.uint8)
    positions = np.concatenate([np.zeros(len(zero), np.int64), position])[order]
    return Sparse(
        shape,
        counts.reshape(-1, shape.blocks),
        positions.astype(np.uint8),
        values.astype(np.int16),
    )


def _grouped(
    keys: npt.NDArray[Any], values: npt.NDArray[Any]
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """(key, its values in order) for each key that occurs, rising."""
    if not len(keys):
        return
    order = np.argsort(keys.astype(np.uint8), kind="stable")
    found, starts = np.unique(keys[order], return_index=True)
    yield from zip(found.tolist(), np.split(values[order], starts[1:]), strict=True)


def _neighbour(planes: IntArray) -> IntArray:
    """(M, h, w): the value to the left, above in the first column, 0 at its top."""
    found = np.zeros_like(planes)
    found[:, :, 1:] = planes[:, :, :-1]
    found[:, 1:, 0] = planes[:, :-1, 0]
    return found


def _undo(differences: IntArray) -> IntArray:
    """The planes that differ so from their neighbours."""
    planes = differences.copy()
    planes[:, :, 0] = np.cumsum(planes[:, :, 0], axis=1)
    return np.cumsum(planes, axis=2)
