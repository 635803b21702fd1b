"""Files that no version of a dataset names: what a killed writer, or a failed commit, left behind.

A writer puts its shards down before it commits, so a file without a name may still get one: only
files that have stood for a while are taken for orphans. What nobody of this project writes (a
note, a folder of something else) is never one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable

from services.errors import NotFoundError, StoreError
from services.shards.manifest import (
    VERSION_FILE,
    list_versions,
    load_manifest,
    named_files,
    version_path,
)
from services.shards.store import Entry, Store
from services.shards.validate import check_name

_OURS = re.compile(r"(shards|assets|columns)/.+|(.+/)?\.[^/]+\.tmp|\.probe-[0-9a-f]+")


def find_orphans(
    root: Store, dataset: str, *, min_age_seconds: float, now: float | None = None
) -> list[Entry]:
    """Files of the dataset's folder that no version names, at least `min_age_seconds` old.

    now: Unix seconds to measure ages from, by default the clock's.

    Raises: NotFoundError; FormatError if a version cannot be read, because what it names is then
    unknown; StoreError where the folder or its versions cannot be listed, or two listings differ in
    a version.
    """
    folder = root.child(check_name(dataset))
    now = time.time() if now is None else now
    # Listed before the manifests are read: a version committed in between protects its files.
    found = folder.scan()
    if not found:
        raise NotFoundError(f"there is no dataset {dataset!r} at {root.url}: nothing to collect")
    versions = list_versions(root, dataset)
    _check_listed(folder, found, versions)
    named: set[str] = set()
    for version in versions:
        named |= named_files(load_manifest(root, dataset, version).manifest)
    return unnamed(found, named, min_age_seconds=min_age_seconds, now=now)


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
