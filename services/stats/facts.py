"""What the service keeps of a version: what its manifest says, with the shards as columns.

As objects, 100,000 shards take ten times the memory, and every look over them, or by Python's
garbage collector, holds up the answers for a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import pydantic
from numpy.typing import NDArray

from services.errors import FormatError, NotFoundError
from services.shards.labels import counts_of
from services.shards.manifest import LoadedManifest, every_file, load_manifest
from services.shards.store import Store
from services.stats.report import storage_report, summarize
from services.types import IntArray
from services.wire.seit import v1 as wire

Counts: TypeAlias = NDArray[np.int64]

_SHARD = pydantic.TypeAdapter(wire.Shard)
_TEXT_A_SHARD = 500
"""Bytes of JSON that stand for about as much memory as the rest of a shard with few labels."""


@dataclass(frozen=True, eq=False)
class Shards:
    """The n shards of a version, in the order of its rows, all splits one after another.

    rows, and sizes in bytes: (n,) int64. labels (L,) int32 and counts (L,) uint32: those of shard i
    stand from starts[i] to starts[i + 1], starts (n + 1,) int64. columns: the names of the added
    columns of the shards that have any, by position. text: the shards as JSON, one after another,
    shard i up to ends[i], ends (n,) int64: a page of them is cut out of it.
    """

    paths: Sequence[str]
    rows: IntArray
    sizes: IntArray
    starts: IntArray
    labels: NDArray[np.int32]
    counts: NDArray[np.uint32]
    columns: Mapping[int, frozenset[str]]
    text: bytes
    ends: IntArray

    def __len__(self) -> int:
        return len(self.paths)

    def json(self, place: int) -> bytes:
        """The shard as the manifest has it, as JSON of its message."""
        return self.text[self.ends[place - 1] if place else 0 : self.ends[place]]

    def at(self, place: int) -> wire.Shard:
        """The shard as the manifest has it."""
        return _SHARD.validate_json(self.json(place))


@dataclass(frozen=True, eq=False)
class Facts:
    """One version. about: its manifest, whose splits are without their shards. digest: of it.

    ends: position behind the last shard of each split. others: path to size of each file that it
    names and that is no shard.
    """

    about: wire.Manifest
    digest: str
    shards: Shards
    ends: Sequence[int]
    others: Mapping[str, int]
    summary: wire.DatasetSummary
    storage: wire.StorageReport

    @property
    def spec(self) -> wire.TokenSpec:
        """The form of its tokens."""
        if self.about.spec is None:
            raise FormatError(f"manifest of {self.about.dataset!r}: no spec")
        return self.about.spec

    @property
    def weight(self) -> int:
        """What it takes in memory, in shards with few labels."""
        return len(self.shards) + len(self.shards.text) // _TEXT_A_SHARD

    def splits(self, name: str | None) -> Sequence[wire.Split]:
        """The split of that name alone, or all of them. Raises: NotFoundError."""
        splits = self.about.splits
        found = [split for split in splits if name in (None, split.name)]
        if name is not None and not found:
            raise NotFoundError(
                f"dataset {self.about.dataset!r} version {self.about.version} has no split"
                f" {name!r}; it has {', '.join(split.name for split in splits) or 'none'}"
            )
        return found

    def places(self, split: str | None) -> range:
        """Positions of the shards of a split, or of all. Raises: NotFoundError."""
        self.splits(split)
        if split is None:
            return range(len(self.shards))
        number = [one.name for one in self.about.splits].index(split)
        return range(self.ends[number - 1] if number else 0, self.ends[number])

    def file_sizes(self) -> dict[str, int]:
        """Path to size of every file that it names, each once."""
        sizes = dict(zip(self.shards.paths, self.shards.sizes.tolist(), strict=True))
        return {**sizes, **self.others}


def load_facts(root: Store, name: str, version: int) -> Facts:
    """What stands as a version. Raises: as `load_manifest`."""
    return facts_of(load_manifest(root, name, version))


def facts_of(loaded: LoadedManifest) -> Facts:
    """What a manifest says."""
    manifest = loaded.manifest
    shards = [shard for split in manifest.splits for shard in split.shards]
    columns = _columns(shards)
    named = set(columns.paths)
    return Facts(
        about=replace(manifest, splits=[replace(one, shards=[]) for one in manifest.splits]),
        digest=loaded.digest,
        shards=columns,
        ends=np.cumsum([len(split.shards) for split in manifest.splits], dtype=int).tolist(),
        others={one.path: one.bytes for one in every_file(manifest) if one.path not in named},
        summary=summarize(manifest),
        storage=storage_report(manifest),
    )


def _columns(shards: Sequence[wire.Shard]) -> Shards:
    held = [counts_of(shard) for shard in shards]
    lengths, none = [len(labels) for labels, _ in held], np.empty(0, np.int64)
    texts = [_SHARD.dump_json(shard) for shard in shards]
    return Shards(
        paths=[shard.path for shard in shards],
        rows=np.array([shard.rows for shard in shards], np.int64),
        sizes=np.array([shard.bytes for shard in shards], np.int64),
        starts=np.cumsum([0, *lengths], dtype=np.int64),
        labels=np.concatenate([none, *(labels for labels, _ in held)]).astype(np.int32),
        counts=np.concatenate([none, *(rows for _, rows in held)]).astype(np.uint32),
        columns={
            at: frozenset(one.name for one in shard.columns)
            for at, shard in enumerate(shards)
            if shard.columns
        },
        text=b"".join(texts),
        ends=np.cumsum([len(text) for text in texts], dtype=np.int64),
    )
