"""The three files of one split in the published release, read and written as streams.

    STEM-token.data.bin.gz    all images' bytes back to back: a token t < 255 is the byte t, any
                              other the byte 255 and the byte t - 255; row-major grids
    STEM-token.index.npy.gz   .npy of N + 1 int64 offsets into those bytes
    STEM-label.txt            one integer label a line

Memory depends on neither the number of rows nor the size of a file. The format holds ids up to
510, so K <= 511; its rows have no names and no sizes of source files.

Shapes: N rows of a split, n rows of a chunk, T tokens of a row, B bytes of a chunk.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from services.errors import FormatError, InvalidInputError, NotFoundError
from services.shards.codec import ESCAPE_BYTE, ByteArray
from services.types import UNLABELLED, IdArray, IntArray, TokenRows
from services.wire.seit import v1 as wire

MAX_RELEASE_CODES = 2 * ESCAPE_BYTE + 1

_CHUNK_ROWS = 2048
_GZIP_LEVEL = 6
_DATA, _INDEX, _LABELS = "-token.data.bin.gz", "-token.index.npy.gz", "-label.txt"
RELEASE_PATTERNS = tuple(f"*{ending}" for ending in (_DATA, _INDEX, _LABELS))


@dataclass(frozen=True)
class ReleaseSplit:
    """Where the files of one split stand; `stem` also starts the keys of its rows."""

    folder: Path
    stem: str

    @property
    def data(self) -> Path:
        return self.folder / f"{self.stem}{_DATA}"

    @property
    def index(self) -> Path:
        return self.folder / f"{self.stem}{_INDEX}"

    @property
    def labels(self) -> Path:
        return self.folder / f"{self.stem}{_LABELS}"


def find_splits(folder: Path) -> list[ReleaseSplit]:
    """Splits whose data stand in the folder, by name; NotFoundError if there is none."""
    found = sorted(path.name.removesuffix(_DATA) for path in folder.glob(f"*{_DATA}"))
    if not found:
        raise NotFoundError(f"no *{_DATA} in {folder}: give the folder of a release")
    return [ReleaseSplit(folder, stem) for stem in found]


def count_rows(files: ReleaseSplit) -> int:
    """Rows of a split by the header of its index: what it says, not what it holds.

    Good for a progress bar, not for an allocation. NotFoundError and FormatError as `read_split`.
    """
    with _opened(files.index) as index:
        return _index_rows(index, files.index)


def read_split(files: ReleaseSplit, spec: wire.TokenSpec) -> Iterator[TokenRows]:
    """Rows of a split in order, a few thousand at a time.

    Raises FormatError, naming file and row, for offsets that do not ascend or leave the data,
    rows of other than the spec's tokens, ids >= spec.codes, labels that are no numbers or too
    few or many, and damaged gzip; NotFoundError for a missing file.
    """
    tokens = spec.grid_height * spec.grid_width
    first = 0
    with _opened(files.data) as data, _opened(files.index) as index, _opened(files.labels) as text:
        for offsets in _read_index(index, files.index, tokens):
            rows = len(offsets) - 1
            size = int(offsets[-1] - offsets[0])
            content = np.frombuffer(_pull(data, size, files.data), np.uint8)
            ids_NT = _parse(content, offsets - offsets[0], tokens, spec.codes, first, files.data)
            yield TokenRows(
                ids=ids_NT.reshape(rows, spec.grid_height, spec.grid_width),
                labels=_read_labels(text, rows, first, files.labels),
                keys=[f"{files.stem}/{row:08d}" for row in range(first, first + rows)],
                source_bytes=np.zeros(rows, np.int64),
            )
            first += rows
        rest = {files.data: _pull_some(data, files.data), files.labels: text.read(64).strip()}
        for path, surplus in rest.items():
            if surplus:
                raise FormatError(
                    f"{path} goes on after the {first} rows that {files.index.name} counts: the "
                    "files belong to different splits, or the index is cut short"
                )


def write_split(files: ReleaseSplit, batches: Iterable[TokenRows], rows: int, codes: int) -> None:
    """Write the three files of a split; each replaces an older one only when all are whole.

    rows: how many the batches hold together, which the index says before its first offset.
    Raises InvalidInputError if the format cannot hold `codes` or the batches hold other numbers.
    """
    if codes > MAX_RELEASE_CODES:
        raise InvalidInputError(
            f"the dataset has {codes} codes, the release format holds at most "
            f"{MAX_RELEASE_CODES}, as an escape adds one byte: restrict the codebook to the codes "
            "in use, or keep the Parquet shards"
        )
    files.folder.mkdir(parents=True, exist_ok=True)
    written, end = 0, 0
    with contextlib.ExitStack() as stack:
        data, index = (stack.enter_context(_replaced(path)) for path in (files.data, files.index))
        labels = stack.enter_context(_replaced(files.labels, plain=True))
        header = {"descr": "<i8", "fortran_order": False, "shape": (rows + 1,)}
        np.lib.format.write_array_header_1_0(index, header)
        index.write(np.zeros(1, "<i8").tobytes())
        for batch in batches:
            content, offsets = escape_bytes(batch.ids.reshape(len(batch), -1))
            data.write(content.data)
            index.write((offsets[1:] + end).astype("<i8").tobytes())
            labels.write("".join(f"{label}\n" for label in batch.labels.tolist()).encode())
            end += len(content)
            written += len(batch)
        if written != rows:
            raise InvalidInputError(
                f"{files.stem}: {written} rows came where {rows} were announced; nothing was "
                "written: give all rows of the split"
            )


def escape_bytes(ids_NT: IdArray) -> tuple[ByteArray, IntArray]:
    """The published byte form of (N, T) ids below 511: bytes (B,), row offsets (N + 1,)."""
    flat = ids_NT.reshape(-1)
    escaped = flat >= ESCAPE_BYTE
    starts = np.arange(len(flat)) + np.cumsum(escaped) - escaped  # (N*T,) first byte of a token
    content = np.empty(len(flat) + np.count_nonzero(escaped), np.uint8)
    content[starts] = np.minimum(flat, ESCAPE_BYTE)
    content[starts[escaped] + 1] = flat[escaped] - ESCAPE_BYTE
    offsets = np.zeros(len(ids_NT) + 1, np.int64)
    np.cumsum(ids_NT.shape[1] + np.count_nonzero(escaped.reshape(ids_NT.shape), 1), out=offsets[1:])
    return content, offsets


def _parse(
    content: ByteArray, offsets: IntArray, tokens: int, codes: int, first: int, path: Path
) -> IdArray:
    """Ids (n, T) of the rows between `offsets` (n + 1,); row `first` is the first of them."""
    # In a run of bytes 255 every other one is an escape mark, the one after it its value.
    high = np.flatnonzero(content == ESCAPE_BYTE)
    begins = np.diff(high, prepend=-2) != 1
    run_start = np.maximum.accumulate(np.where(begins, high, 0))
    marks = high[(high - run_start) % 2 == 0]
    is_token = np.ones(len(content) + 1, bool)  # one more: a mark may be the last byte
    is_token[marks + 1] = False
    counts = np.add.reduceat(is_token[:-1], offsets[:-1], dtype=np.int64)
    wrong = (counts != tokens) | ~is_token[offsets[:-1]] | ~is_token[offsets[1:]]
    if wrong.any():
        row = int(np.argmax(wrong))
        raise FormatError(
            f"{path}: row {first + row} holds {counts[row]} tokens in its "
            f"{offsets[row + 1] - offsets[row]} bytes, or cuts an escape; the grid has {tokens}: "
            "give the release's grid, or fetch data and index again"
        )
    ids = content.astype(np.uint16)
    ids[marks] += content[marks + 1]
    ids_NT = ids[is_token[:-1]].reshape(-1, tokens)
    if int(ids_NT.max()) >= codes:
        row = int(np.argmax(ids_NT.max(1) >= codes))
        raise FormatError(
            f"{path}: row {first + row} holds id {ids_NT[row].max()}, outside 0..{codes - 1}: the "
            "codebook beside it belongs to other tokens"
        )
    return ids_NT


def _index_rows(stream: IO[bytes], path: Path) -> int:
    """Rows that the index's header promises; the stream stands at the first offset then."""
    try:
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[np.lib.format.read_magic(stream)]
        shape, _, dtype = reader(stream)
    except Exception as error:  # of a damaged header numpy raises whatever its words lead to
        raise FormatError(f"{path} is not a gzipped .npy file: {error}") from error
    if len(shape) != 1 or shape[0] < 2 or dtype != np.dtype("<i8"):
        raise FormatError(f"{path}: found {shape} {dtype}, expected N + 1 offsets of int64")
    return int(shape[0]) - 1


def _read_index(stream: IO[bytes], path: Path, tokens: int) -> Iterator[IntArray]:
    """Offsets in overlapping chunks (n + 1,): the last of one is the first of the next."""
    rows = _index_rows(stream, path)
    last = np.frombuffer(_pull(stream, 8, path), "<i8")
    if last[0] != 0:
        raise FormatError(f"{path}: the first offset is {last[0]}, not 0")
    for start in range(0, rows, _CHUNK_ROWS):
        count = min(_CHUNK_ROWS, rows - start)
        offsets = np.concatenate([last, np.frombuffer(_pull(stream, 8 * count, path), "<i8")])
        sizes = np.diff(offsets)
        wrong = (sizes < tokens) | (sizes > 2 * tokens)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise FormatError(
                f"{path}: row {start + row} has {sizes[row]} bytes; {tokens} tokens take "
                f"{tokens} to {2 * tokens}: give the release's grid, or fetch the index again"
            )
        last = offsets[-1:]
        yield offsets.astype(np.int64)
    if _pull_some(stream, path):
        raise FormatError(f"{path} goes on after its {rows + 1} offsets: fetch it again")


def _read_labels(stream: IO[bytes], rows: int, first: int, path: Path) -> IntArray:
    lines = list(itertools.islice(stream, rows))
    if len(lines) < rows:
        raise FormatError(f"{path} has {first + len(lines)} lines for at least {first + rows} rows")
    limit = int(np.iinfo(np.int32).max)
    labels = np.empty(rows, np.int64)
    for number, line in enumerate(lines):
        try:
            if b"_" in line:
                raise ValueError  # to Python 1_0 is ten
            labels[number] = label = int(line)
        except (ValueError, OverflowError):
            label = limit + 1
        if not UNLABELLED <= label <= limit:
            raise FormatError(
                f"{path}: line {first + number + 1} is {line[:40]!r}, not a label of "
                f"{UNLABELLED}..{limit}"
            )
    return labels


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if not path.is_file():
        raise NotFoundError(f"no file {path}: a split has data, index and labels; check the path")
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
        yield stream  # type: ignore[misc]


def _pull(stream: IO[bytes], size: int, path: Path) -> bytes:
    data = _guarded(stream, size, path)
    if len(data) != size:
        raise FormatError(f"{path} ends {size - len(data)} bytes too early: fetch it again")
    return data


def _pull_some(stream: IO[bytes], path: Path) -> bytes:
    """What follows, at most a little; at the end gzip compares its own checksum."""
    return _guarded(stream, 64, path)


def _guarded(stream: IO[bytes], size: int, path: Path) -> bytes:
    try:
        return stream.read(size)
    except (EOFError, OSError, zlib.error) as error:
        raise FormatError(f"{path} is not whole gzip data ({error}): fetch it again") from error


@contextlib.contextmanager
def _replaced(path: Path, plain: bool = False) -> Iterator[IO[bytes]]:
    """A stream whose bytes stand under `path` after a clean end, and nowhere after an error."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as raw:
            if plain:
                yield raw
            else:
                with gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, mtime=0) as packed:
                    yield packed  # type: ignore[misc]
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
