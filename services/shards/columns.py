"""Columns added to a dataset that stands: values beside the shards, which stay as they are.

    columns/NAME-DIGEST.parquet    values of some consecutive rows of one shard (column_file.py)

A new version names the same shards, each with the files of its values. Rows that are appended
later have no values until `add_column` is given theirs, and only theirs, under the same name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from services.errors import CommitConflictError, InvalidInputError, NotFoundError
from services.shards import layout
from services.shards.checked import read_checked
from services.shards.column_file import PART_BYTES, ROW_BYTES, Part, part_file
from services.shards.column_input import ColumnInput, KeyHashes, hash_keys
from services.shards.manifest import LoadedManifest, commit, load_manifest
from services.shards.reader import find_split
from services.shards.store import Store
from services.shards.threads import in_order
from services.shards.validate import check_name
from services.types import IntArray
from services.wire.seit import v1 as wire

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Told the rows done and all rows, again and again."""

_WORKERS = 4  # each holds a shard, or a part of a column
_NAMED = 5  # keys that a message lists


def _ignore(done: int, total: int) -> None:
    """The progress of a caller that does not want to know."""


def add_column(
    root: Store,
    dataset: str,
    name: str,
    values: Path,
    *,
    splits: Sequence[str] = (),
    progress: Progress = _ignore,
) -> LoadedManifest:
    """Commit the next version, in which each row of the splits (of all by default) has a value.

    values: Parquet file with `key` (string) and `value` (one of COLUMN_TYPES). Its keys are those
    of the rows that do not have the column yet, each exactly once. Memory: 32 bytes a row and a
    few parts of 32 MiB; strings and binary values pass through a temporary file.

    Raises InvalidInputError for keys that are missing, left over or there twice, and other bad
    values; CommitConflictError if the rows changed meanwhile; nothing is committed then.
    """
    check_name(name, "column")
    loaded = load_manifest(root, dataset)
    shards = _without(loaded.manifest, name, splits)
    folder = root.child(dataset)
    with ColumnInput(values) as source:
        _check_type(loaded.manifest, name, source.type)
        places = _match(folder, loaded.spec, shards, source, values)
        source.load()
        written: dict[str, list[wire.Column]] = {}
        total, done = len(source), 0
        jobs = (
            partial(_write, folder, name, shard, source, places[shard.path]) for shard in shards
        )
        for shard, parts in zip(shards, in_order(jobs, _WORKERS), strict=True):
            written[shard.path] = parts
            done += shard.rows
            progress(done, total)
        message = f"column {name} ({source.type}) added to {total} rows"

    def change(base: LoadedManifest) -> wire.Manifest:
        _check_unchanged(base.manifest, name, splits, written)
        _check_type(base.manifest, name, source.type)
        return _changed(base, message, splits, lambda one: one.columns + written.get(one.path, []))

    return commit(root, change(loaded), rebase=change)


def drop_column(
    root: Store, dataset: str, name: str, *, splits: Sequence[str] = ()
) -> LoadedManifest:
    """Commit the next version, without the column in the splits (in all by default).

    Its files stay for the versions that name them. NotFoundError if no split has it.
    """

    def change(base: LoadedManifest) -> wire.Manifest:
        chosen = _chosen(base.manifest, splits)
        if not any(_has(shard, name) for split in chosen for shard in split.shards):
            there = {c.name for split in chosen for shard in split.shards for c in shard.columns}
            raise NotFoundError(
                f"dataset {dataset!r} version {base.manifest.version} has no column {name!r} in "
                f"{', '.join(split.name for split in chosen) or 'any split'}; there are: "
                f"{', '.join(sorted(there)) or 'none'}"
            )
        return _changed(
            base,
            f"column {name} dropped",
            splits,
            lambda one: [column for column in one.columns if column.name != name],
        )

    return commit(root, change(load_manifest(root, dataset)), rebase=change)


def _chosen(manifest: wire.Manifest, splits: Sequence[str]) -> list[wire.Split]:
    return [find_split(manifest, name) for name in splits] if splits else list(manifest.splits)


def _has(shard: wire.Shard, name: str) -> bool:
    return any(column.name == name for column in shard.columns)


def _without(manifest: wire.Manifest, name: str, splits: Sequence[str]) -> list[wire.Shard]:
    """The shards that lack the column, each file once; InvalidInputError if there are none."""
    standing = [shard for split in _chosen(manifest, splits) for shard in split.shards]
    lacking = {shard.path: shard for shard in standing if not _has(shard, name)}
    if not lacking:
        raise InvalidInputError(
            f"dataset {manifest.dataset!r} version {manifest.version} has no rows without a column "
            f"{name!r} in {', '.join(splits) or 'all splits'}; nothing was changed: use another "
            "name, or drop the column first"
        )
    return list(lacking.values())


def _check_type(manifest: wire.Manifest, name: str, kind: str) -> None:
    for split in manifest.splits:
        for shard in split.shards:
            for column in shard.columns:
                if column.name == name and column.type != kind:
                    raise InvalidInputError(
                        f"column {name!r} of split {split.name} is {column.type}, the values are "
                        f"{kind}: a column has one type; cast the values or use another name"
                    )


def _match(
    folder: Store,
    spec: wire.TokenSpec,
    shards: Sequence[wire.Shard],
    source: ColumnInput,
    values: Path,
) -> dict[str, IntArray]:
    """Path of each shard -> (rows,) int64, the rows of `source` that hold its values."""
    hashes = source.key_hashes()
    order: IntArray = np.argsort(hashes)
    ordered = hashes[order]
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        named = source.keys(order[twice[:_NAMED]].tolist())
        raise _mismatch(values, "stand more than once in the file", len(twice), named)
    taken = np.zeros(len(hashes), bool)
    places: dict[str, IntArray] = {}
    missing, again = _Keys(), _Keys()
    jobs = (partial(_read_keys, folder, shard, spec) for shard in shards)
    for shard, keys in zip(shards, in_order(jobs, _WORKERS), strict=True):
        at = np.searchsorted(ordered, keys.hashes).clip(max=len(ordered) - 1)
        found = ordered[at] == keys.hashes
        missing.add(keys, np.flatnonzero(~found))
        place = order[at]
        first = np.zeros(len(place), bool)
        first[np.unique(place, return_index=True)[1]] = True
        again.add(keys, np.flatnonzero(found & (taken[place] | ~first)))
        taken[place[found]] = True
        places[shard.path] = place
    if missing.count:
        raise _mismatch(values, "of the dataset are not in the file", missing.count, missing.named)
    if again.count:
        raise _mismatch(values, "name several rows of the dataset", again.count, again.named)
    surplus = np.flatnonzero(~taken)
    if len(surplus):
        named = source.keys(surplus[:_NAMED].tolist())
        what = "belong to no row of the dataset that lacks the column"
        raise _mismatch(values, what, len(surplus), named)
    return places


class _Keys:
    """How many keys were found to be wrong, and the first of them."""

    def __init__(self) -> None:
        self.count = 0
        self.named: list[str] = []

    def add(self, keys: _ShardKeys, index: IntArray) -> None:
        self.count += len(index)
        self.named += keys.named(index[: _NAMED - len(self.named)])


@dataclass(frozen=True)
class _ShardKeys:
    """offsets: (N + 1,) into content, (B,) uint8. hashes: (N,) of the keys."""

    offsets: IntArray
    content: bytes
    hashes: KeyHashes

    def named(self, rows: IntArray) -> list[str]:
        return [self.content[self.offsets[r] : self.offsets[r + 1]].decode() for r in rows]


def _mismatch(values: Path, what: str, count: int, named: Sequence[str]) -> InvalidInputError:
    listed = ", ".join(repr(key) for key in named) + (", ..." if count > len(named) else "")
    return InvalidInputError(
        f"{values}: {count} keys {what}: {listed}. Each row of the splits needs its key exactly "
        "once; nothing was changed: correct the file, or choose other splits"
    )


def _read_keys(folder: Store, shard: wire.Shard, spec: wire.TokenSpec) -> _ShardKeys:
    name = f"{folder.url}/{shard.path}"
    rows = layout.read_rows(
        read_checked(folder, shard), spec, shard.rows, name, digest_checked=True
    )
    content = rows.key_bytes.tobytes()  # a copy, which lets go of all the rest
    return _ShardKeys(rows.key_offsets, content, hash_keys(rows.key_offsets, content))


def write_values(
    folder: Store,
    shard: wire.Shard,
    name: str,
    kind: str,
    sizes: IntArray,
    take: Callable[[int, int], Any],
) -> list[wire.Column]:
    """Write one shard's values of a column, cut into parts; their entries for the manifest.

    folder: the dataset's. kind: one of COLUMN_TYPES. sizes: (rows,) bytes of each value.
    take: Arrow array of that type with the values of rows [start, stop).
    """
    written = []
    for start, stop in _cut(sizes + ROW_BYTES):
        part = Part(name, kind, shard.xxh3, start, stop - start)
        data = part_file(take(start, stop), part)
        digest = xxhash.xxh3_128_hexdigest(data)
        path = f"columns/{name}-{digest[:16]}.parquet"
        folder.write(path, data)
        written.append(
            wire.Column(
                name=name, type=kind, path=path, rows=part.rows, bytes=len(data), xxh3=digest
            )
        )
    return written


def _write(
    folder: Store, name: str, shard: wire.Shard, source: ColumnInput, rows: IntArray
) -> list[wire.Column]:
    """Write the parts of one shard's values: row i of the shard has that of row rows[i]."""

    def take(start: int, stop: int) -> Any:
        return source.take(rows[start:stop])

    return write_values(folder, shard, name, source.type, source.lengths(rows), take)


def _cut(sizes: IntArray) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive rows of at most PART_BYTES, or of one row."""
    ends, start = np.cumsum(sizes), 0
    while start < len(sizes):
        room = PART_BYTES + (int(ends[start - 1]) if start else 0)
        stop = max(start + 1, int(np.searchsorted(ends, room, side="right")))
        yield start, stop
        start = stop


def _check_unchanged(
    manifest: wire.Manifest,
    name: str,
    splits: Sequence[str],
    written: dict[str, list[wire.Column]],
) -> None:
    """CommitConflictError unless the rows without the column are still those that were written."""
    standing = [shard for split in _chosen(manifest, splits) for shard in split.shards]
    lacking = {shard.path for shard in standing if not _has(shard, name)}
    if lacking != written.keys():
        raise CommitConflictError(
            f"dataset {manifest.dataset!r} version {manifest.version}: another writer added or "
            f"removed rows, or their values of {name!r}, meanwhile; nothing was changed: look at "
            "what stands and try again"
        )


def _changed(
    base: LoadedManifest,
    message: str,
    splits: Sequence[str],
    columns: Callable[[wire.Shard], list[wire.Column]],
) -> wire.Manifest:
    """The manifest with these columns in the shards of the chosen splits."""
    changed = {id(split) for split in _chosen(base.manifest, splits)}
    return replace(
        base.manifest,
        splits=[
            replace(split, shards=[replace(one, columns=columns(one)) for one in split.shards])
            if id(split) in changed
            else split
            for split in base.manifest.splits
        ],
        message=message,
        parent=base.digest,
        writer="",
    )
