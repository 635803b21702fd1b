"""How many rows of each label a shard holds, as its manifest says it: listed where the labels are
few, packed where they are many.

Shards of shuffled rows hold nearly all labels of their dataset. Listed, those of 11 million rows of
21,000 classes are 68 MB of JSON, and 930 MB in every process that opens the dataset; packed, 8 and
11.
"""

from __future__ import annotations

import base64
import binascii
import zlib

import numpy as np

from services.errors import FormatError
from services.types import IntArray
from services.wire.seit import v1 as wire

MOST_LISTED = 64
"""Labels of a shard that are listed, at most (count)."""

_NUMBER = np.dtype("<u4")


def pack_counts(labels: IntArray, rows: IntArray) -> wire.LabelCounts:
    """The manifest's form of these counts.

    labels: (L,) int64, rising, from -1. rows: (L,) int64, of each label.
    """
    if len(labels) <= MOST_LISTED:
        return wire.LabelCounts(labels=labels.tolist(), rows=rows.tolist())
    numbers = np.concatenate([np.diff(labels, prepend=-1), rows]).astype(_NUMBER)
    # All lowest bytes first, then all second ones: nearly all others are zeros in a row.
    planes = numbers.view(np.uint8).reshape(-1, _NUMBER.itemsize).T
    return wire.LabelCounts(packed=base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode())


def counts_of(shard: wire.Shard) -> tuple[IntArray, IntArray]:
    """(L,) int64 labels and (L,) int64 rows of each; both empty where a shard says nothing.

    Raises: FormatError where packed counts are damaged, or more than the shard has rows.
    """
    said = shard.labels or wire.LabelCounts()
    if not said.packed:
        try:
            return np.array(said.labels, np.int64), np.array(said.rows, np.int64)
        except OverflowError as error:
            raise FormatError(
                f"manifest: shard {shard.path}: label counts up to {max(said.rows)}, rows are"
                f" {shard.rows}"
            ) from error
    planes = _unpacked(shard, said.packed)
    numbers = planes.reshape(_NUMBER.itemsize, -1).T.copy().view(_NUMBER).astype(np.int64)
    steps, rows = numbers.reshape(2, -1)
    return np.cumsum(steps) - 1, rows


def _unpacked(shard: wire.Shard, packed: str) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    pair = 2 * _NUMBER.itemsize
    most = pair * shard.rows  # a label has one row at least
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(base64.b64decode(packed, validate=True), most + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise FormatError(f"manifest: shard {shard.path}: packed label counts: {error}") from error
    if not stream.eof or stream.unused_data or len(data) % pair or not 0 < len(data) <= most:
        raise FormatError(
            f"manifest: shard {shard.path}: packed label counts are not those of one to"
            f" {shard.rows} labels: the manifest is damaged"
        )
    return np.frombuffer(data, np.uint8)
