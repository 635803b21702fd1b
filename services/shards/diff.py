"""What changed between two versions of a dataset, read from their manifests alone.

Shards are compared by their content (xxh3), so a shard that two versions share counts as shared
wherever it stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest

import xxhash

from services.shards.labels import counts_of
from services.wire.seit import v1 as wire


@dataclass(frozen=True)
class ShardsDiff:
    """Some shards of a split: how many, and their rows and bytes together."""

    shards: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class CountDiff:
    """A label, or a code, that does not occur as often as before: rows, or tokens."""

    value: int
    before: int
    after: int


@dataclass(frozen=True)
class SplitDiff:
    """A split that stands in at least one of the versions; in the other it counts as empty.

    added, removed, shared: its shards. moved: those of the shared shards whose rows have other
    row numbers than before, because other shards stand before them.
    labels, codes: those whose counts differ, ascending.
    duplicates_before, duplicates_after: rows whose whole grid another row has before them; None
        where it is not known.
    code_shift: half the sum of |difference of a code's share of all tokens| over all codes: 0 for
        equal distributions, 1 for disjoint ones, also for an empty and a filled split.
    """

    name: str
    rows_before: int
    rows_after: int
    added: ShardsDiff
    removed: ShardsDiff
    shared: ShardsDiff
    moved: int
    labels: tuple[CountDiff, ...]
    codes: tuple[CountDiff, ...]
    code_shift: float
    duplicates_before: int | None
    duplicates_after: int | None


@dataclass(frozen=True)
class ValueDiff:
    """A value of the manifest that differs, in words; "none" where it is not there."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class VersionDiff:
    """The difference of two versions.

    before, after: their numbers. values: size by size of the spec, the tokenizer, the number of
    skipped pictures. classes: labels whose name differs. assets: kinds whose file differs, as
    xxh3. columns: added columns whose values differ, as SPLIT/COLUMN. splits: all splits of both,
    those of `after` first, in order.
    """

    before: int
    after: int
    values: tuple[ValueDiff, ...]
    classes: tuple[ValueDiff, ...]
    assets: tuple[ValueDiff, ...]
    columns: tuple[ValueDiff, ...]
    splits: tuple[SplitDiff, ...]

    @property
    def same_content(self) -> bool:
        """Whether a reader gets the same rows in the same order, and all else the same."""
        return not (self.values or self.classes or self.assets or self.columns) and not any(
            split.added.shards or split.removed.shards or split.moved for split in self.splits
        )


def diff_manifests(before: wire.Manifest, after: wire.Manifest) -> VersionDiff:
    """Compare two manifests, most usefully two versions of one dataset. Reads no other file."""
    empty = wire.Split()
    old = {split.name: split for split in before.splits}
    new = {split.name: split for split in after.splits}
    names = [*new, *(name for name in old if name not in new)]
    return VersionDiff(
        before=before.version,
        after=after.version,
        values=_values(_described(before), _described(after)),
        classes=tuple(
            ValueDiff(str(label), first, second)
            for label, (first, second) in enumerate(
                zip_longest(before.classes, after.classes, fillvalue="none")
            )
            if first != second
        ),
        assets=_values(
            {asset.kind: asset.xxh3 for asset in before.assets},
            {asset.kind: asset.xxh3 for asset in after.assets},
        ),
        columns=_values(_columns(before), _columns(after)),
        splits=tuple(
            _diff_splits(name, old.get(name, empty), new.get(name, empty)) for name in names
        ),
    )


def _described(manifest: wire.Manifest) -> dict[str, str]:
    spec = manifest.spec or wire.TokenSpec()
    return {
        "grid": f"{spec.grid_height}x{spec.grid_width}",
        "codes": str(spec.codes),
        "channels": str(spec.channels),
        "image": f"{spec.image_height}x{spec.image_width}",
        "tokenizer": manifest.tokenizer_kind,
        "skipped pictures": str(len(manifest.skipped)),
    }


def _columns(manifest: wire.Manifest) -> dict[str, str]:
    """SPLIT/COLUMN to its type, its share of the shards and a digest of its values' files."""
    described = {}
    for split in manifest.splits:
        parts = [part for shard in split.shards for part in shard.columns]
        for name, kind in {part.name: part.type for part in parts}.items():
            owners = sum(any(p.name == name for p in shard.columns) for shard in split.shards)
            files = xxhash.xxh3_64_hexdigest(
                "".join(p.xxh3 for p in parts if p.name == name).encode()
            )
            described[f"{split.name}/{name}"] = (
                f"{kind} in {owners} of {len(split.shards)} shards, {files}"
            )
    return described


def _values(before: dict[str, str], after: dict[str, str]) -> tuple[ValueDiff, ...]:
    pairs = ((name, before.get(name), after.get(name)) for name in {**before, **after})
    return tuple(
        ValueDiff(name, first or "none", second or "none")
        for name, first, second in pairs
        if first != second
    )


def _diff_splits(name: str, before: wire.Split, after: wire.Split) -> SplitDiff:
    # A multiset: nothing forbids a manifest to name one shard twice.
    old, new = (Counter(shard.xxh3 for shard in split.shards) for split in (before, after))
    known = {shard.xxh3: shard for split in (before, after) for shard in split.shards}
    shared = old & new
    kept_places = (Counter(_places(before)) & Counter(_places(after))).total()
    return SplitDiff(
        name=name,
        rows_before=sum(shard.rows for shard in before.shards),
        rows_after=sum(shard.rows for shard in after.shards),
        added=_sum((new - old).elements(), known),
        removed=_sum((old - new).elements(), known),
        shared=_sum(shared.elements(), known),
        moved=shared.total() - kept_places,
        labels=_count_diffs(_labels(before), _labels(after)),
        codes=_count_diffs(
            Counter(dict(enumerate(before.code_counts))),
            Counter(dict(enumerate(after.code_counts))),
        ),
        code_shift=_shift(before.code_counts, after.code_counts),
        duplicates_before=before.duplicate_rows if before.shards else 0,
        duplicates_after=after.duplicate_rows if after.shards else 0,
    )


def _places(split: wire.Split) -> list[tuple[str, int]]:
    """Each shard's content and the row number at which it begins."""
    starts = accumulate((shard.rows for shard in split.shards), initial=0)
    return [(shard.xxh3, start) for shard, start in zip(split.shards, starts, strict=False)]


def _sum(digests: Iterable[str], known: dict[str, wire.Shard]) -> ShardsDiff:
    shards = [known[digest] for digest in digests]
    return ShardsDiff(
        len(shards), sum(one.rows for one in shards), sum(one.bytes for one in shards)
    )


def _labels(split: wire.Split) -> Counter[int]:
    counts: Counter[int] = Counter()
    for shard in split.shards:
        labels, rows = counts_of(shard)
        counts.update(dict(zip(labels.tolist(), rows.tolist(), strict=True)))
    return counts


def _count_diffs(before: Counter[int], after: Counter[int]) -> tuple[CountDiff, ...]:
    return tuple(
        CountDiff(value, before[value], after[value])
        for value in sorted(before | after)
        if before[value] != after[value]
    )


def _shift(before: Sequence[int], after: Sequence[int]) -> float:
    if list(before) == list(after):
        return 0.0
    totals = sum(before), sum(after)
    if 0 in totals:
        return float(totals[0] != totals[1])
    return 0.5 * sum(
        abs(first / totals[0] - second / totals[1])
        for first, second in zip_longest(before, after, fillvalue=0)
    )
