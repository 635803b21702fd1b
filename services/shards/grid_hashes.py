"""Which grids, and which pictures, of a split are equal: hashes of each, kept beside the shards.

    assets/grid-hashes-DIGEST.npy       (n,) uint64, ascending: xxh3-64 of n rows' grids
    assets/picture-hashes-DIGEST.npy    the same of the files of n rows' pictures

Each addition to a split has a file (or several, past 67 million rows); more than `MAX_FILES` are
merged into one. An append thus counts exactly over old and new rows, from 8 bytes a row instead of
a shard's 1000. Exact means: as long as no two different grids share their 64 bits, which takes a
billion rows for a chance of 1 in 37.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from services.errors import FormatError
from services.shards.checked import read_checked
from services.shards.store import Store
from services.types import IdArray
from services.wire.seit import v1 as wire

KIND = "grid-hashes"
PICTURES = "picture-hashes"
FILE_ROWS = 1 << 26  # 512 MB: one request on every object store
MAX_FILES = 8  # beyond those that FILE_ROWS asks for

HashArray = npt.NDArray[np.uint64]


def hash_grids(ids_NHW: IdArray) -> HashArray:
    """(N,) uint64: xxh3-64 of each grid's ids as little-endian uint16, row-major."""
    rows = np.ascontiguousarray(ids_NHW, "<u2")
    return np.fromiter(map(xxhash.xxh3_64_intdigest, rows), np.uint64, len(rows))


def hash_picture(data: bytes) -> int:
    """xxh3-64 of a picture's file."""
    return xxhash.xxh3_64_intdigest(data)


def count_duplicates(sorted_N: HashArray) -> int:
    """Rows whose grid, or picture, another row has before them: rows - different ones."""
    return int(np.count_nonzero(sorted_N[1:] == sorted_N[:-1]))


def put_hashes(
    root: Store, dataset: str, sorted_N: HashArray, kind: str = KIND
) -> list[wire.Asset]:
    """Write ascending hashes below assets/, named by their contents; no file for no rows."""
    folder = root.child(dataset)
    written = []
    for start in range(0, len(sorted_N), FILE_ROWS):
        file = io.BytesIO()
        part = sorted_N[start : start + FILE_ROWS].astype("<u8", copy=False)
        np.lib.format.write_array(file, part, (1, 0), allow_pickle=False)
        data = file.getvalue()
        digest = xxhash.xxh3_128_hexdigest(data)
        path = f"assets/{kind}-{digest[:16]}.npy"
        folder.write(path, data)
        written.append(wire.Asset(kind=kind, path=path, bytes=len(data), xxh3=digest))
    return written


def read_hashes(root: Store, dataset: str, asset: wire.Asset) -> HashArray:
    """The hashes of one file, ascending. IntegrityError or FormatError if it is damaged."""
    folder = root.child(dataset)
    data = read_checked(folder, asset)
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f".npy version {version}")
        shape, _, kind = np.lib.format.read_array_header_1_0(file)
        if kind != np.dtype("<u8") or len(shape) != 1 or len(data) - file.tell() != 8 * shape[0]:
            raise ValueError(f"{len(data)} bytes with {shape} values of {kind}")
        hashes = np.frombuffer(data, "<u8", offset=file.tell())
        if np.any(hashes[1:] < hashes[:-1]):
            raise ValueError("its values do not ascend")
    except Exception as error:  # of a damaged header numpy raises whatever its words lead to
        raise FormatError(
            f"{folder.url}/{asset.path}: not the hashes of a split's rows ({error}): restore the "
            "file"
        ) from error
    return hashes.astype(np.uint64, copy=False)


def known_hashes(split: wire.Split, kind: str = KIND) -> tuple[list[wire.Asset], int | None]:
    """Files of a split's hashes, and how many of its rows repeat one; [] and None if not known."""
    if kind == KIND:
        return split.grid_hashes, split.duplicate_rows
    return split.picture_hashes, split.duplicate_pictures


def split_hashes(
    root: Store, dataset: str, splits: Sequence[wire.Split], kind: str = KIND
) -> HashArray:
    """All hashes of splits whose duplicates are known, ascending; 8 bytes a row in memory, twice.

    FormatError if they are not as many as the rows; errors of `read_hashes`.
    """
    files = [asset for one in splits for asset in known_hashes(one, kind)[0]]
    parts = [read_hashes(root, dataset, asset) for asset in files]
    hashes = np.concatenate([np.zeros(0, np.uint64), *parts])
    rows = sum(shard.rows for one in splits for shard in one.shards)
    if len(hashes) != rows:
        raise FormatError(
            f"{root.url}/{dataset}: {len(hashes)} {kind} for {rows} rows of split "
            f"{splits[0].name!r}: its duplicates cannot be counted; write its shards again and "
            "commit a new version"
        )
    hashes.sort()
    return hashes


def join_hashes(
    root: Store, dataset: str, first: wire.Split, then: wire.Split, kind: str = KIND
) -> tuple[list[wire.Asset], int | None]:
    """Files and number of duplicates of a split of the rows of both.

    [] and None if those of one are not known. Files are shared, or merged if they are many.
    """
    pair = [known_hashes(one, kind) for one in (first, then)]
    if any(count is None for _, count in pair):
        return [], None
    hashes = split_hashes(root, dataset, [first, then], kind)
    files = [asset for listed, _ in pair for asset in listed]
    if len(files) > MAX_FILES + len(hashes) // FILE_ROWS:
        files = put_hashes(root, dataset, hashes, kind)
    return files, count_duplicates(hashes)
