"""Files that no version of a dataset names: what a killed writer, or a failed commit, left behind.

A writer puts its shards down before it commits, so a file without a name may still get one: only
files that have stood for a while are taken for orphans. What nobody of this project writes (a
note, a folder of something else) is never one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Sequence

from services.errors import StoreError
from services.shards.manifest import (
    VERSION_FILE,
    list_versions,
    load_manifest,
    named_files,
    no_dataset,
    version_path,
)
from services.shards.store import Entry, Store
from services.shards.validate import check_name

_OURS = re.compile(r"(shards|assets|columns)/.+|(.+/)?\.[^/]+\.tmp|\.probe-[0-9a-f]+")
_BATCH = 100  # files between two listings: seconds on a bucket


def find_orphans(
    root: Store, dataset: str, *, min_age_seconds: float, now: float | None = None
) -> list[Entry]:
    """Files of the dataset's folder that no version names, at least `min_age_seconds` old.

    now: Unix seconds to measure ages from, by default the clock's.

    Raises: NotFoundError; FormatError if a version cannot be read, because what it names is then
    unknown; StoreError where the folder or its versions cannot be listed, or two listings differ in
    a version.
    """
    found, named = _look(root, dataset, {})
    if not found:
        raise no_dataset(root, dataset)
    now = time.time() if now is None else now
    return unnamed(found, named, min_age_seconds=min_age_seconds, now=now)


def remove_orphans(
    root: Store, dataset: str, orphans: Sequence[Entry], *, min_age_seconds: float
) -> list[Entry]:
    """Remove what `find_orphans` found; the files that were removed.

    An ingest that is run again puts the same files down under the same names and commits them,
    while a bucket takes minutes to remove what was listed before. So before every few files the
    folder is listed again: what was written since, or is named by now, stays. Where a file is
    removed between the end of an ingest and its commit, the commit is refused: it wants each of its
    files to stand. Errors as `find_orphans`; what was removed before one stays removed.
    """
    folder = root.child(check_name(dataset))
    read: dict[int, set[str]] = {}
    removed: list[Entry] = []
    for start in range(0, len(orphans), _BATCH):
        found, named = _look(root, dataset, read)
        still = set(unnamed(found, named, min_age_seconds=min_age_seconds, now=time.time()))
        for entry in orphans[start : start + _BATCH]:
            if entry in still:  # of the same size and time, too
                folder.delete(entry.path)
                removed.append(entry)
    return removed


def _look(root: Store, dataset: str, read: dict[int, set[str]]) -> tuple[list[Entry], set[str]]:
    """All files of the dataset's folder, and what its versions name.

    read: what each version names that was read before; those that are new are added.
    """
    folder = root.child(check_name(dataset))
    # Listed before the manifests are read: a version committed in between protects its files.
    found = folder.scan()
    versions = list_versions(root, dataset)
    _check_listed(folder, found, versions)
    for version in versions:
        if version not in read:
            read[version] = named_files(load_manifest(root, dataset, version).manifest)
    return found, set().union(*read.values())


def _check_listed(folder: Store, found: Iterable[Entry], versions: Collection[int]) -> None:
    """StoreError where a listing shows a version that is not among `versions`."""
    seen = {entry.path for entry in found if VERSION_FILE.fullmatch(entry.path)}
    missing = seen - {version_path(version) for version in versions}
    if missing:
        raise StoreError(
            f"{folder.url}: one listing shows {', '.join(sorted(missing)[:5])}, the next does not: "
            "all files of such a version would be taken for orphans; nothing more was collected: "
            "make sure that the storage lists all that stands and that nobody removes versions, "
            "and try again"
        )


def unnamed(
    found: Iterable[Entry], named: Collection[str], *, min_age_seconds: float, now: float
) -> list[Entry]:
    """Those of a listing that are files of this project and not `named`, old enough at `now`."""
    return [
        entry
        for entry in found
        if entry.path not in named
        and _OURS.fullmatch(entry.path)
        and now - entry.modified >= min_age_seconds
    ]
