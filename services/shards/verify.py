"""Whether the files of a version are what its manifest says, byte by byte and row by row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from services.errors import IntegrityError, InvalidInputError, SeitError
from services.shards import codec, layout
from services.shards.checked import NamedFile, check_file, read_checked
from services.shards.column_file import Part, column_parts, read_part
from services.shards.grid_hashes import (
    PICTURES,
    HashArray,
    count_duplicates,
    hash_grids,
    read_hashes,
    split_hashes,
)
from services.shards.labels import counts_of
from services.shards.manifest import every_file, load_manifest, read_asset
from services.shards.store import Store
from services.shards.threads import in_order
from services.types import IntArray
from services.wire.seit import v1 as wire


@dataclass(frozen=True)
class Check:
    """The result for one file, or for the counts of one whole split.

    name: path of the file, or "split NAME". bytes: its size in the manifest, 0 for a split.
    failure: what is wrong, None if nothing is.
    """

    name: str
    bytes: int
    failure: str | None


@dataclass(frozen=True)
class _Found:
    """What a sound shard holds: code counts (K,) and the hash of each row's grid (N,)."""

    code_counts: IntArray
    grid_hashes: HashArray


_Result = tuple[Check, _Found | None]


def verify_files(
    root: Store, dataset: str, version: int | None = None, *, workers: int | None = None
) -> Iterator[Check]:
    """Hold size and xxh3 of every file that a version names (the newest by default) against it.

    As fast as the storage gives the files: nothing is unpacked. What the writer put into them is
    there; whether it was right is the question of `verify_dataset`. `workers` (by default one a
    core) files are looked at at once. Raises only if the manifest itself cannot be read.
    """
    loaded = load_manifest(root, dataset, version)
    folder = root.child(dataset)

    def job(file: NamedFile) -> Callable[[], Check]:
        return lambda: Check(file.path, file.bytes, _failure(partial(check_file, folder, file)))

    files = {file.path: file for file in every_file(loaded.manifest)}
    return in_order(map(job, files.values()), _workers(workers))


def verify_dataset(
    root: Store, dataset: str, version: int | None = None, *, workers: int | None = None
) -> Iterator[Check]:
    """Check every asset, shard, column and split of a version (the newest by default), in order.

    Of a shard: size, xxh3, layout, labels, source bytes and ranges of the ids; of
    a column's file: the same, and that it belongs to its shard; of a split: the code counts and
    the hashes of all grids over its shards. At most `workers` (by default one a core) files are
    looked at, and in memory, at once. Raises only if the manifest itself cannot be read.
    """
    workers = _workers(workers)
    loaded = load_manifest(root, dataset, version)
    return _checks(root, loaded.manifest, loaded.spec, workers)


def _workers(asked: int | None) -> int:
    if asked is not None and asked < 1:
        raise InvalidInputError(f"workers is {asked}, valid are 1 and more")
    return asked or os.cpu_count() or 1


def _checks(
    root: Store, manifest: wire.Manifest, spec: wire.TokenSpec, workers: int
) -> Iterator[Check]:
    dataset = manifest.dataset
    for asset in manifest.assets:
        failure = _failure(partial(read_asset, root, dataset, asset))
        yield Check(asset.path, asset.bytes, failure)
    for split in manifest.splits:
        counts_K, hashes = np.zeros(spec.codes, np.int64), []
        for check, found in in_order(_jobs(root, manifest, split, spec), workers):
            if found is not None:
                counts_K += found.code_counts
                hashes.append(found.grid_hashes)
            yield check
        sound = len(hashes) == len(split.shards)
        for asset in (*split.grid_hashes, *split.picture_hashes):
            failure = _failure(partial(read_hashes, root, dataset, asset))
            sound = sound and failure is None
            yield Check(asset.path, asset.bytes, failure)
        wrong: str | None = "not all of its files are sound, so its counts cannot be checked"
        if sound:
            wrong = (
                _wrong_counts(split, counts_K)
                or _wrong_hashes(root, dataset, split, hashes)
                or _wrong_pictures(root, dataset, split)
            )
        yield Check(f"split {split.name}", 0, wrong)


def _jobs(
    root: Store, manifest: wire.Manifest, split: wire.Split, spec: wire.TokenSpec
) -> Iterator[Callable[[], _Result]]:
    folder = root.child(manifest.dataset)
    for shard in split.shards:
        yield partial(_check_shard, folder, shard, spec, bool(split.grid_hashes))
        for part, column in column_parts(shard):
            yield partial(_check_column, folder, part, column)


def _check_shard(folder: Store, shard: wire.Shard, spec: wire.TokenSpec, hashed: bool) -> _Result:
    """The shard's result, and what it holds if it is sound; hashes only if they are wanted."""
    try:
        found = _read_shard(folder, shard, spec, hashed)
    except SeitError as error:
        return Check(shard.path, shard.bytes, str(error)), None
    return Check(shard.path, shard.bytes, None), found


def _read_shard(folder: Store, shard: wire.Shard, spec: wire.TokenSpec, hashed: bool) -> _Found:
    name = f"{folder.url}/{shard.path}"
    rows = layout.read_rows(
        read_checked(folder, shard), spec, shard.rows, name, digest_checked=True
    )
    said_labels, said_rows = counts_of(shard)
    labels, counts = np.unique(rows.labels, return_counts=True)
    order = np.argsort(said_labels)
    if not (
        np.array_equal(said_labels[order], labels) and np.array_equal(said_rows[order], counts)
    ):
        raise IntegrityError(f"{name}: its labels are not those that the manifest counts")
    if int(rows.source_bytes.sum()) != shard.source_bytes:
        raise IntegrityError(
            f"{name}: source bytes add up to {int(rows.source_bytes.sum())}, the manifest says "
            f"{shard.source_bytes}"
        )
    code_counts, hashes = np.zeros(spec.codes, np.int64), [np.zeros(0, np.uint64)]
    for ids in rows.id_parts():
        code_counts += codec.count_codes(ids, spec.codes)
        if hashed:
            hashes.append(hash_grids(ids))
    return _Found(code_counts, np.concatenate(hashes))


def _check_column(folder: Store, part: Part, column: wire.Column) -> _Result:
    def read() -> None:
        read_part(read_checked(folder, column), part, f"{folder.url}/{column.path}")

    return Check(column.path, column.bytes, _failure(read)), None


def _failure(read: Callable[[], object]) -> str | None:
    try:
        read()
    except SeitError as error:
        return str(error)
    return None


def _wrong_counts(split: wire.Split, counts_K: IntArray) -> str | None:
    wrong = np.flatnonzero(counts_K != np.array(split.code_counts, np.int64))
    if not len(wrong):
        return None
    code = int(wrong[0])
    return (
        f"the shards hold other codes than the manifest counts: {len(wrong)} counts differ, the "
        f"first is code {code} with {counts_K[code]} tokens, the manifest says "
        f"{split.code_counts[code]}"
    )


def _wrong_hashes(
    root: Store, dataset: str, split: wire.Split, found: list[HashArray]
) -> str | None:
    """What is wrong with the hashes and the count of duplicates, against those of the shards."""
    if not split.grid_hashes:
        return None  # not known, or nothing to know
    wanted_N = np.sort(np.concatenate(found))
    try:
        kept_N = split_hashes(root, dataset, [split])
    except SeitError as error:
        return str(error)
    if not np.array_equal(kept_N, wanted_N):
        return "the hashes of its grids that the manifest names are not those of its shards' rows"
    if count_duplicates(wanted_N) != split.duplicate_rows:
        return (
            f"{count_duplicates(wanted_N)} of its rows repeat a grid, the manifest says "
            f"{split.duplicate_rows}"
        )
    return None


def _wrong_pictures(root: Store, dataset: str, split: wire.Split) -> str | None:
    """The same of the hashes of its pictures, of which nothing but the hashes is left."""
    if not split.picture_hashes:
        return None
    try:
        found = count_duplicates(split_hashes(root, dataset, [split], PICTURES))
    except SeitError as error:
        return str(error)
    if found != split.duplicate_pictures:
        return f"{found} of its pictures repeat, the manifest says {split.duplicate_pictures}"
    return None
