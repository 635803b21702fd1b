"""Versions of a dataset: immutable manifests, and the commit that adds one.

    ROOT/NAME/versions/00000001.json     wire.Manifest as JSON, never changed
    ROOT/NAME/shards/*.parquet           shared by the versions that name them
    ROOT/NAME/assets/KIND-DIGEST.safetensors, grid-hashes-DIGEST.npy

Shards and assets are written first, the manifest last and exclusively, so a reader sees a whole
version or none, and of two writers neither overwrites the other.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pydantic
import pydantic_core
import xxhash

from services.errors import (
    CommitConflictError,
    FormatError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    StoreError,
)
from services.shards.checked import NamedFile, read_checked
from services.shards.coefficient_stats import add_stats
from services.shards.grid_hashes import PICTURES, join_hashes
from services.shards.store import Store, refuse_missing
from services.shards.validate import MANIFEST_FORMATS, check_manifest, check_name, format_of
from services.wire.seit import v1 as wire

logger = logging.getLogger(__name__)

Rebase = Callable[["LoadedManifest"], wire.Manifest]

VERSIONS = "versions"
DATASETS = f"the datasets (NAME/{VERSIONS}/…, as `seit ingest` writes them)"
"""What a root is expected to hold, in words."""
VERSION_FILE = re.compile(rf"{VERSIONS}/([0-9]{{8}})\.json")
MAX_SKIPPED = 10_000
"""Pictures that could not be read which a manifest names; `Intake.unreadable` counts all."""

_MAX_CONFLICTS = 10_000  # each one is a version that another writer committed meanwhile
_ADAPTER = pydantic.TypeAdapter(wire.Manifest)


@dataclass(frozen=True)
class LoadedManifest:
    """A manifest that stands on storage.

    digest: xxh3-128 of the file, 32 hexadecimal digits: the identity of the version.
    """

    manifest: wire.Manifest
    digest: str

    @property
    def spec(self) -> wire.TokenSpec:
        """The form of its tokens."""
        if self.manifest.spec is None:
            raise FormatError(f"manifest of {self.manifest.dataset!r}: no spec")
        return self.manifest.spec


def dump_manifest(manifest: wire.Manifest) -> bytes:
    """The manifest as JSON, the bytes that stand on storage."""
    return _ADAPTER.dump_json(manifest)


def parse_manifest(data: bytes) -> wire.Manifest:
    """The checked manifest of these bytes; FormatError for anything else, first by its format."""
    try:
        manifest = _ADAPTER.validate_json(data, strict=True)
    except ValueError as error:
        _check_format(_stated_format(data))
        raise FormatError(f"manifest: {' '.join(str(error).split())[:500]}") from error
    _check_format(manifest.format)
    check_manifest(manifest)
    return manifest


def _stated_format(data: bytes) -> object:
    try:
        raw = pydantic_core.from_json(data)
    except ValueError as error:
        raise FormatError(f"manifest: this is not whole JSON: {error}") from error
    return raw.get("format") if isinstance(raw, dict) else None


def _check_format(found: object) -> None:
    if type(found) is not int or found not in MANIFEST_FORMATS:
        newer = isinstance(found, int) and found > max(MANIFEST_FORMATS)
        raise FormatError(
            f"manifest: found format {found!r}, this program reads "
            f"{' and '.join(map(str, MANIFEST_FORMATS))}: "
            f"{'upgrade seitpp' if newer else 'the file is damaged or not a manifest'}"
        )


def list_datasets(root: Store) -> list[str]:
    """Names of the datasets below the root that have a version, sorted."""
    return [name for name in root.folders() if _is_name(name) and _has_versions(root, name)]


def _has_versions(root: Store, name: str) -> bool:
    try:
        return bool(list_versions(root, name))
    except StoreError as error:
        if not is_private(error):
            raise
        logger.warning("left out, as it may be somebody's own folder: %s", error)
        return False


def is_private(error: StoreError) -> bool:
    """Whether a folder beside datasets may not be listed: it may be somebody's own."""
    return isinstance(error.__cause__, PermissionError)


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except InvalidInputError:
        return False
    return True


def list_versions(root: Store, dataset: str) -> list[int]:
    """Numbers of the versions that stand, ascending; [] if there is no such dataset.

    StoreError where they cannot be listed: what is not seen must not count as not there.
    """
    matches = map(VERSION_FILE.fullmatch, root.child(check_name(dataset)).list(VERSIONS))
    return sorted(int(match[1]) for match in matches if match)


def load_manifest(root: Store, dataset: str, version: int | None = None) -> LoadedManifest:
    """One version of a dataset, the newest if none is named.

    NotFoundError if it does not stand (naming those that do), FormatError if it is damaged.
    """
    if version is None:
        versions = list_versions(root, dataset)
        if not versions:
            raise no_dataset(root, dataset)
        version = versions[-1]
    try:
        return _load(root.child(check_name(dataset)), dataset, version)
    except NotFoundError as error:
        versions = list_versions(root, dataset)
        if not versions:
            raise no_dataset(root, dataset) from error
        raise NotFoundError(
            f"dataset {dataset!r} at {root.url} has no version {version}; there are: {versions}"
        ) from error


def no_dataset(root: Store, dataset: str) -> NotFoundError:
    """What to say where no version of a dataset stands: which others do, or what the root is."""
    refuse_missing(root, DATASETS)
    there = ", ".join(list_datasets(root))
    if not there:
        own = as_one_dataset(root)
        there = (
            f"none, as {own}" if own else f"none: give the folder, or URL, that holds {DATASETS}"
        )
    return NotFoundError(f"no dataset {dataset!r} at {root.url}; there are: {there}")


def as_one_dataset(root: Store) -> str:
    """In words, that a root is itself a dataset's folder, and what to give; "" where it is none."""
    if not any(map(VERSION_FILE.fullmatch, root.list(VERSIONS))):
        return ""
    holder = root.url.rpartition("/")[0]
    named = "" if holder.endswith(":/") else f", {holder or '/'}"  # a bucket is in no folder
    return f"it is the folder of one dataset: give the folder that holds it{named}"


def version_path(version: int) -> str:
    """Of the version's file, relative to the dataset's folder."""
    return f"{VERSIONS}/{version:08d}.json"


def _load(folder: Store, dataset: str, version: int) -> LoadedManifest:
    data = folder.read(version_path(version))
    try:
        manifest = parse_manifest(data)
    except FormatError as error:
        raise FormatError(f"{folder.url}/{version_path(version)}: {error}") from error
    if (manifest.dataset, manifest.version) != (dataset, version):
        raise FormatError(
            f"{folder.url}/{version_path(version)}: the file says dataset {manifest.dataset!r} "
            f"version {manifest.version}: it was copied or renamed; commit it again under its new "
            "name"
        )
    return LoadedManifest(manifest, xxhash.xxh3_128_hexdigest(data))


def commit(
    root: Store, manifest: wire.Manifest, *, rebase: Rebase | None = None, sole_writer: bool = False
) -> LoadedManifest:
    """Make the manifest the next version of its dataset; its files must stand already.

    format, version, created and (if empty) writer are filled in here. `manifest.parent` says what
    the manifest was built on: empty for contents that stand for themselves, which become the next
    version whatever stands, or the digest of the version that was changed. If another version
    came in between, `rebase` is given the newest one and returns the change made to it; without
    `rebase` that is a CommitConflictError.

    sole_writer: the caller vouches that nobody else commits to this dataset, so that a storage
    that cannot create exclusively will do. Otherwise such a storage is a StoreError.
    """
    folder = root.child(check_name(manifest.dataset))
    if not sole_writer:
        folder.check_exclusive()
    versions = list_versions(root, manifest.dataset)
    newest = _load(folder, manifest.dataset, versions[-1]) if versions else None
    _check_files(folder, manifest, newest)
    for _ in range(_MAX_CONFLICTS):
        final = _next(manifest, newest, rebase)
        check_manifest(final)  # never publish what a reader would refuse
        data = dump_manifest(final)
        if _publish(folder, version_path(final.version), data, sole_writer):
            logger.info("committed %s version %d", final.dataset, final.version)
            return LoadedManifest(final, xxhash.xxh3_128_hexdigest(data))
        newest = _load(folder, manifest.dataset, final.version)
    raise CommitConflictError(
        f"{folder.url}: other writers were faster {_MAX_CONFLICTS} times; nothing was overwritten: "
        "try again when fewer of them commit"
    )


def _publish(folder: Store, path: str, data: bytes, sole_writer: bool) -> bool:
    if not sole_writer:
        return folder.create(path, data)
    if folder.exists(path):
        return False
    folder.write(path, data)
    return True


def _next(
    manifest: wire.Manifest, newest: LoadedManifest | None, rebase: Rebase | None
) -> wire.Manifest:
    parent = newest.digest if newest else ""
    if manifest.parent and manifest.parent != parent:
        if rebase is None or newest is None:
            stands = f"version {newest.manifest.version} ({parent})" if newest else "nothing"
            raise CommitConflictError(
                f"dataset {manifest.dataset!r}: the change was made to the version of digest "
                f"{manifest.parent}, but the newest is {stands}; nothing was overwritten: load "
                "the newest version and make the change again"
            )
        manifest = rebase(newest)
    return replace(
        manifest,
        format=format_of(manifest),
        version=newest.manifest.version + 1 if newest else 1,
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
        writer=manifest.writer or _writer(),
        parent=parent,
    )


def _writer() -> str:
    try:
        return f"seitpp {importlib.metadata.version('seitpp')}"
    except importlib.metadata.PackageNotFoundError:
        return "seitpp"  # a Ray job's working directory: importable without being installed


def _check_files(folder: Store, manifest: wire.Manifest, newest: LoadedManifest | None) -> None:
    """Shards first, manifest last: refuse to name files that do not stand in their full size."""
    standing = file_sizes(newest.manifest) if newest else {}
    wanted = {path: size for path, size in file_sizes(manifest).items() if path not in standing}
    parts = {path.partition("/")[0] for path in wanted}
    found = {entry.path: entry.bytes for part in sorted(parts) for entry in folder.scan(part)}
    for path, size in wanted.items():
        if found.get(path) != size:
            raise IntegrityError(
                f"{folder.url}/{path}: the manifest wants {size} bytes, found "
                f"{found.get(path, 'no file')}; not committed: write the file again first"
            )


def every_file(manifest: wire.Manifest) -> Iterator[NamedFile]:
    """What a manifest says of each file that it names, paths relative to the dataset's folder."""
    yield from manifest.assets
    for split in manifest.splits:
        for shard in split.shards:
            yield shard
            yield from shard.columns
        yield from split.grid_hashes
        yield from split.picture_hashes


def file_sizes(manifest: wire.Manifest) -> dict[str, int]:
    """Path to size of every file that a manifest names; each once, however often it is named."""
    return {file.path: file.bytes for file in every_file(manifest)}


def named_files(manifest: wire.Manifest) -> set[str]:
    """Paths, relative to the dataset's folder, of every file that a manifest names."""
    return set(file_sizes(manifest))


def extend(
    root: Store,
    base: LoadedManifest,
    splits: Sequence[wire.Split],
    message: str,
    skipped: Sequence[wire.Skipped] = (),
    intakes: Sequence[wire.Intake] = (),
) -> wire.Manifest:
    """The manifest with more shards: those of a known split follow its own, new splits come last.

    skipped: pictures that could not be read, added to those of `base`; intakes: likewise.

    Shards of `base` are shared, not copied; of its files only the hashes of grids are read, to
    count duplicates over old and new rows. Pass the result to `commit`, with
    `rebase=lambda newest: extend(root, newest, splits, message)` to append to whatever is newest.
    Columns that were added to `base` do not reach the new shards: see `columns.add_column`.

    Raises: InvalidInputError for splits of other numbers of codes or channels than the spec of
    `base` says, as after a renumbering by another writer. Whether classes and codebook are those
    that the splits were made for, only the caller knows: its `rebase` checks it.
    """
    dataset = base.manifest.dataset
    spec = base.spec
    for split in splits:
        codes, stats = len(split.code_counts), split.coefficients
        channels = len(stats.nonzeros) if stats else spec.channels
        if (codes, channels) != (spec.codes, spec.channels):
            raise InvalidInputError(
                f"dataset {dataset!r} version {base.manifest.version} has {spec.codes} codes and "
                f"{spec.channels} channels, the new rows of split {split.name!r} were made with "
                f"{codes} and {channels}: their ids would mean other codes; nothing was committed: "
                "make them again with the tokenizer of that version"
            )
    merged = {split.name: split for split in base.manifest.splits}
    for split in splits:
        old = merged.get(split.name)
        if old is not None:
            counts = [a + b for a, b in zip(old.code_counts, split.code_counts, strict=True)]
            hashes, duplicates = join_hashes(root, dataset, old, split)
            pictures, repeated = join_hashes(root, dataset, old, split, PICTURES)
            split = wire.Split(
                name=split.name,
                shards=[*old.shards, *split.shards],
                code_counts=counts,
                grid_hashes=hashes,
                duplicate_rows=duplicates,
                picture_hashes=pictures,
                duplicate_pictures=repeated,
                coefficients=add_stats([old.coefficients, split.coefficients]),
            )
        merged[split.name] = split
    return replace(
        base.manifest,
        splits=list(merged.values()),
        skipped=[*base.manifest.skipped, *skipped][:MAX_SKIPPED],
        intakes=[*base.manifest.intakes, *intakes],
        message=message,
        parent=base.digest,
        writer="",
    )


def put_asset(root: Store, dataset: str, kind: str, data: bytes) -> wire.Asset:
    """Write a codebook, tokenizer or synonyms file (safetensors), named by its contents."""
    digest = xxhash.xxh3_128_hexdigest(data)
    path = f"assets/{check_name(kind, 'asset')}-{digest[:16]}.safetensors"
    root.child(check_name(dataset)).write(path, data)
    return wire.Asset(kind=kind, path=path, bytes=len(data), xxh3=digest)


def read_asset(root: Store, dataset: str, asset: wire.Asset) -> bytes:
    """The bytes of an asset; IntegrityError if they are not those that the manifest names."""
    return read_checked(root.child(check_name(dataset)), asset)
