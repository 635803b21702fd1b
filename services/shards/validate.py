"""What a manifest may say: names, paths, sizes and sums, checked before anything uses them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np

from services.errors import FormatError, InvalidInputError
from services.shards.grid_hashes import KIND, PICTURES, known_hashes
from services.shards.labels import counts_of
from services.shards.store import check_path
from services.types import MAX_CODES, MAX_GRID, UNLABELLED
from services.wire.seit import v1 as wire

MANIFEST_FORMATS = (1, 2)
"""That this program reads; it writes the first one that can say what a manifest has to."""

MAX_PIXELS = 65_536  # a side of an image; 0 stands for "not known"
MAX_CHANNELS = 65_536
MAX_SHARD_ROWS = 1 << 31
MAX_FILE_BYTES = 1 << 40
MAX_SUM = (1 << 63) - 1
"""Of anything that is added up over a dataset: what counts it there has 64 bits, one for a sign."""
_PIXEL_BYTES = 3  # of an uncompressed picture's pixel
COLUMN_TYPES = ("int32", "int64", "float32", "float64", "string", "binary", "coefficients")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{32}")


def check_name(name: str, what: str = "dataset") -> str:
    """The name itself if it may be one of a dataset, split or asset; InvalidInputError otherwise.

    Valid are 1 to 63 of `a-z 0-9 . _ -`, the first a letter or digit, without `..`.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise InvalidInputError(
            f"{what} name {name!r} is not valid: use 1 to 63 of a-z 0-9 . _ - (first a letter or "
            "digit, no '..'), because names become folder and file names on every storage"
        )
    return name


def check_spec(spec: wire.TokenSpec) -> None:
    """Raise FormatError unless every size of the spec is within what this program handles."""
    bounds = {
        "grid_height": (1, MAX_GRID),
        "grid_width": (1, MAX_GRID),
        "codes": (1, MAX_CODES),
        "channels": (1, MAX_CHANNELS),
        "image_height": (0, MAX_PIXELS),
        "image_width": (0, MAX_PIXELS),
    }
    for name, (low, high) in bounds.items():
        _within(f"spec.{name}", getattr(spec, name), low, high)


def check_manifest(manifest: wire.Manifest) -> None:
    """Raise FormatError, naming the field, unless the manifest is whole and agrees with itself.

    Checked are the ranges of all sizes, that no path leaves the dataset's folder, and that rows,
    label counts and code counts add up. What the files themselves hold is not looked at.
    """
    if manifest.format < format_of(manifest):
        raise FormatError(
            f"manifest: format {manifest.format} has no packed label counts, but they stand in it:"
            " the manifest is damaged"
        )
    _named(manifest.dataset, "dataset")
    _within("version", manifest.version, 1, 10**8 - 1)
    try:
        datetime.fromisoformat(manifest.created)
    except ValueError as error:
        raise FormatError(f"manifest: created {manifest.created!r} is not a time") from error
    if manifest.parent or manifest.version > 1:
        _digest("parent", manifest.parent)
    if manifest.spec is None:
        raise FormatError("manifest: no spec: the form of its tokens is unknown")
    check_spec(manifest.spec)
    for asset in manifest.assets:
        _named(asset.kind, "asset")
        _file(f"asset {asset.kind}", "assets/", asset.path, asset.bytes, asset.xxh3)
    _distinct("asset", [asset.kind for asset in manifest.assets])
    _distinct("split", [split.name for split in manifest.splits])
    seen: dict[str, wire.Shard] = {}
    types: dict[str, str] = {}
    for split in manifest.splits:
        _named(split.name, "split")
        for shard in split.shards:
            _shard(shard, len(manifest.classes))
            first = seen.setdefault(shard.path, shard)
            if first is not shard and replace(first, columns=[]) != replace(shard, columns=[]):
                raise FormatError(f"manifest: shard {shard.path} stands twice, with other contents")
            _columns(shard, types)
        _code_counts(split, manifest.spec)
        _duplicates(split)
        _coefficients(split, manifest.spec)
    _sums(manifest.splits, manifest.spec)


def _sums(splits: Sequence[wire.Split], spec: wire.TokenSpec) -> None:
    """Whoever adds up what the manifest says meets no number that is too large to be told."""
    shards = [shard for split in splits for shard in split.shards]
    rows = sum(shard.rows for shard in shards)
    stats = [split.coefficients for split in splits if split.coefficients]
    sums = {
        "tokens": rows * spec.grid_height * spec.grid_width,
        "bytes of pixels": rows * spec.image_height * spec.image_width * _PIXEL_BYTES,
        "bytes of shards": sum(shard.bytes for shard in shards),
        "bytes of columns": sum(part.bytes for shard in shards for part in shard.columns),
        "source_bytes": sum(shard.source_bytes for shard in shards),
        "coefficients": sum(sum(one.nonzeros) + sum(one.magnitudes) for one in stats),
    }
    for what, total in sums.items():
        _within(f"{what} of all splits", total, 0, MAX_SUM)


def _within(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise FormatError(f"manifest: {what} is {value}, valid are {low} to {high}")


def _digest(what: str, digest: str) -> None:
    if not _DIGEST.fullmatch(digest):
        raise FormatError(f"manifest: {what} {digest!r} is not 32 hexadecimal digits")


def _named(name: str, what: str) -> None:
    try:
        check_name(name, what)
    except InvalidInputError as error:
        raise FormatError(f"manifest: {error}") from error


def _distinct(what: str, names: list[str]) -> None:
    twice = {name for name, times in Counter(names).items() if times > 1}
    if twice:
        raise FormatError(f"manifest: {what} {sorted(twice)} stands more than once")


def _file(what: str, folder: str, path: str, size: int, digest: str) -> None:
    try:
        check_path(path)
    except InvalidInputError as error:
        raise FormatError(f"manifest: {what}: {error}") from error
    if not path.startswith(folder):
        raise FormatError(f"manifest: {what} has path {path!r}, which is not below {folder!r}")
    _within(f"{what}: bytes", size, 1, MAX_FILE_BYTES)
    _digest(f"{what}: xxh3", digest)


def _shard(shard: wire.Shard, classes: int) -> None:
    what = f"shard {shard.path}"
    _file(what, "shards/", shard.path, shard.bytes, shard.xxh3)
    _within(f"{what}: rows", shard.rows, 1, MAX_SHARD_ROWS)
    if shard.labels is None:
        raise FormatError(f"manifest: {what}: no label counts")
    labels, rows = counts_of(shard)
    rising = bool((np.diff(labels) > 0).all())
    different = len(labels) if rising else len(np.unique(labels))
    if len(labels) != len(rows) or different != len(labels):
        raise FormatError(
            f"manifest: {what}: {len(labels)} labels ({different} different) with "
            f"{len(rows)} counts; each label has one count"
        )
    if len(labels):
        _within(f"{what}: label", int(labels.min()), UNLABELLED, (classes or 1 << 31) - 1)
        _within(f"{what}: label", int(labels.max()), UNLABELLED, (classes or 1 << 31) - 1)
        _within(f"{what}: rows of a label", int(rows.max()), 0, shard.rows)
    if rows.sum() != shard.rows:
        raise FormatError(
            f"manifest: {what}: label counts add up to {rows.sum()}, rows are {shard.rows}"
        )


def _code_counts(split: wire.Split, spec: wire.TokenSpec) -> None:
    tokens = sum(shard.rows for shard in split.shards) * spec.grid_height * spec.grid_width
    if len(split.code_counts) != spec.codes or sum(split.code_counts) != tokens:
        raise FormatError(
            f"manifest: split {split.name}: {len(split.code_counts)} code counts that add up to "
            f"{sum(split.code_counts)}; expected {spec.codes} of {tokens} tokens"
        )


def _duplicates(split: wire.Split) -> None:
    """Files and count stand together; neither where the duplicates are not known."""
    rows = sum(shard.rows for shard in split.shards)
    for kind in (KIND, PICTURES):
        what = f"split {split.name}: {kind}"
        files, found = known_hashes(split, kind)
        for asset in files:
            _named(asset.kind, "asset")
            _file(f"{what} {asset.path}", "assets/", asset.path, asset.bytes, asset.xxh3)
        if found is not None:
            _within(f"{what}: duplicates", found, 0, max(0, rows - 1))
        if bool(files) != (found is not None and rows > 0):
            raise FormatError(
                f"manifest: {what}: {found} duplicates with {len(files)} files of hashes for "
                f"{rows} rows; it has both, or neither where it is not known"
            )


def _coefficients(split: wire.Split, spec: wire.TokenSpec) -> None:
    stats = split.coefficients
    if stats is not None and not len(stats.nonzeros) == len(stats.magnitudes) == spec.channels:
        raise FormatError(
            f"manifest: split {split.name}: coefficients of {len(stats.nonzeros)} and "
            f"{len(stats.magnitudes)} channels; expected {spec.channels} of each"
        )


def format_of(manifest: wire.Manifest) -> int:
    """The first format that can say what the manifest says."""
    shards = (shard for split in manifest.splits for shard in split.shards)
    return 2 if any(shard.labels and shard.labels.packed for shard in shards) else 1


def _columns(shard: wire.Shard, types: dict[str, str]) -> None:
    """types: of the columns seen so far, over all shards; new ones are added."""
    rows: dict[str, int] = {}
    for number, part in enumerate(shard.columns):
        what = f"shard {shard.path}: column {part.name}"
        _named(part.name, "column")
        _file(f"{what}: {part.path}", "columns/", part.path, part.bytes, part.xxh3)
        _within(f"{what}: rows", part.rows, 1, MAX_SHARD_ROWS)
        if part.type not in COLUMN_TYPES or types.setdefault(part.name, part.type) != part.type:
            raise FormatError(
                f"manifest: {what} is of type {part.type!r}; valid are {', '.join(COLUMN_TYPES)}, "
                "the same in each shard"
            )
        if part.name in rows and shard.columns[number - 1].name != part.name:
            raise FormatError(f"manifest: {what}: its parts do not stand together")
        rows[part.name] = rows.get(part.name, 0) + part.rows
    for name, count in rows.items():
        if count != shard.rows:
            raise FormatError(
                f"manifest: shard {shard.path}: column {name} has {count} rows, the shard "
                f"{shard.rows}"
            )
