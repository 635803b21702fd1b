"""A shard that was read: its tokens as they are stored, everything else as arrays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from services.errors import FormatError
from services.shards import codec
from services.shards.codec import ByteArray, Columns
from services.types import IdArray, IntArray


@dataclass(frozen=True)
class ShardRows:
    """Rows of a shard, all in flat arrays; the ids as they are stored until somebody asks.

    name: what errors call the shard. columns: the tokens of N rows.
    labels: (N,) int64. source_bytes: (N,) int64.
    key_offsets: (N + 1,) int64 into key_bytes (B,) uint8, the keys in UTF-8 back to back.
    """

    name: str
    columns: Columns
    labels: IntArray
    source_bytes: IntArray
    key_offsets: IntArray
    key_bytes: ByteArray

    def __len__(self) -> int:
        return len(self.columns.low)

    def ids(self) -> IdArray:
        """(N, T) uint16. FormatError where the columns do not fit together."""
        with errors_name(self.name):
            return codec.decode(self.columns)

    def id_parts(self) -> Iterator[IdArray]:
        """All ids, some rows at a time: (n, T) uint16. Errors as `ids`, at the part they are in."""
        with errors_name(self.name):
            yield from codec.decode_parts(self.columns)

    def keys(self, index: IntArray | None = None) -> list[str]:
        """Keys of the rows `index`, of all rows by default."""
        rows = range(len(self)) if index is None else index.tolist()
        begin, end = self.key_offsets[:-1], self.key_offsets[1:]
        return [bytes(self.key_bytes[begin[row] : end[row]]).decode() for row in rows]


@contextmanager
def errors_name(name: str) -> Iterator[None]:
    """What goes wrong while the shard is read becomes a FormatError that names it."""
    try:
        yield
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from error
    except (pa.ArrowException, OSError, ValueError) as error:  # Unicode, too
        reason = " ".join(str(error).split())[:300]
        raise FormatError(
            f"{name}: not a whole Parquet file ({reason}): fetch or write it again"
        ) from error
