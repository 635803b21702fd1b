"""Whether the files of a version are what its manifest says, byte by byte and row by row."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import xxhash

from services.errors import IntegrityError, InvalidInputError, SeitError
from services.shards import codec, layout
from services.shards.manifest import load_manifest, read_asset
from services.shards.store import Store
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


def verify_dataset(
    root: Store, dataset: str, version: int | None = None, *, workers: int | None = None
) -> Iterator[Check]:
    """Check every asset, shard and split of a version (the newest by default), in its order.

    Of a shard: size, xxh3, page checksums, layout, labels, source bytes and ranges of the ids; of
    a split: the code counts over its shards. At most `workers` (by default one a core) shards are
    looked at, and in memory, at once. Raises only if the manifest itself cannot be read.
    """
    if workers is not None and workers < 1:
        raise InvalidInputError(f"workers is {workers}, valid are 1 and more")
    loaded = load_manifest(root, dataset, version)
    return _checks(root, loaded.manifest, loaded.spec, workers or os.cpu_count() or 1)


def _checks(
    root: Store, manifest: wire.Manifest, spec: wire.TokenSpec, workers: int
) -> Iterator[Check]:
    for asset in manifest.assets:
        yield Check(asset.path, asset.bytes, _asset_failure(root, manifest.dataset, asset))
    # Threads: reading, hashing, un-zipping and most of numpy leave the interpreter's lock alone.
    with ThreadPoolExecutor(workers, thread_name_prefix="verify") as pool:
        for split in manifest.splits:
            counts_K: IntArray | None = np.zeros(spec.codes, np.int64)
            for check, found_K in _check_shards(pool, workers, root, manifest, split, spec):
                counts_K = None if counts_K is None or found_K is None else counts_K + found_K
                yield check
            yield Check(f"split {split.name}", 0, _split_failure(split, counts_K))


_Result = tuple[Check, IntArray | None]


def _check_shards(
    pool: ThreadPoolExecutor,
    workers: int,
    root: Store,
    manifest: wire.Manifest,
    split: wire.Split,
    spec: wire.TokenSpec,
) -> Iterator[_Result]:
    """Results in the split's order; no more than `workers` are begun and not yet yielded."""
    folder = root.child(manifest.dataset)
    running: deque[Future[_Result]] = deque()
    for shard in split.shards:
        if len(running) >= workers:
            yield running.popleft().result()
        running.append(pool.submit(_check_shard, folder, shard, spec))
    while running:
        yield running.popleft().result()


def _check_shard(folder: Store, shard: wire.Shard, spec: wire.TokenSpec) -> _Result:
    """The shard's result, and its code counts (K,) if it is sound."""
    try:
        counts_K = _count_shard(folder, shard, spec)
    except SeitError as error:
        return Check(shard.path, shard.bytes, str(error)), None
    return Check(shard.path, shard.bytes, None), counts_K


def _count_shard(folder: Store, shard: wire.Shard, spec: wire.TokenSpec) -> IntArray:
    name = f"{folder.url}/{shard.path}"
    data = folder.read(shard.path)
    found = xxhash.xxh3_128_hexdigest(data)
    if (len(data), found) != (shard.bytes, shard.xxh3):
        raise IntegrityError(
            f"{name}: {len(data)} bytes of xxh3 {found}, expected {shard.bytes} of {shard.xxh3}: "
            "the file is damaged; restore it, or write it again and commit a new version"
        )
    rows = layout.read_encoded(data, spec, shard.rows, name)
    said = shard.labels or wire.LabelCounts()
    labels, counts = np.unique(rows.labels, return_counts=True)
    if dict(zip(said.labels, said.rows, strict=True)) != dict(
        zip(labels.tolist(), counts.tolist(), strict=True)
    ):
        raise IntegrityError(f"{name}: its labels are not those that the manifest counts")
    if int(rows.source_bytes.sum()) != shard.source_bytes:
        raise IntegrityError(
            f"{name}: source bytes add up to {int(rows.source_bytes.sum())}, the manifest says "
            f"{shard.source_bytes}"
        )
    return codec.count_codes(codec.decode(rows.encoded), spec.codes)


def _asset_failure(root: Store, dataset: str, asset: wire.Asset) -> str | None:
    try:
        read_asset(root, dataset, asset)
    except SeitError as error:
        return str(error)
    return None


def _split_failure(split: wire.Split, counts_K: IntArray | None) -> str | None:
    if counts_K is None:
        return "not all of its shards are sound, so its code counts cannot be checked"
    wrong = np.flatnonzero(counts_K != np.array(split.code_counts, np.int64))
    if not len(wrong):
        return None
    code = int(wrong[0])
    return (
        f"the shards hold other codes than the manifest counts: {len(wrong)} counts differ, the "
        f"first is code {code} with {counts_K[code]} tokens, the manifest says "
        f"{split.code_counts[code]}"
    )
