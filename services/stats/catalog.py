"""The newest state of a root, at hand: what datasets and versions stand, and their manifests.

A listing serves for `fresh_seconds`, so a new version is seen soon and requests do not each list
the bucket. A manifest never changes, so it is read once and kept while there is room.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from services.errors import FormatError, InvalidInputError, NotFoundError
from services.shards.manifest import LoadedManifest, list_versions, load_manifest
from services.shards.store import Store
from services.shards.validate import check_name
from services.stats.report import parse_shard_cursor, shard_page, summarize
from services.wire.seit import v1 as wire

logger = logging.getLogger(__name__)

_LISTINGS = 16
"""Folders listed at the same time: one after another, an object store takes a second for 50."""


class Catalog:
    """Datasets below `root`. Safe to share by threads.

    fresh_seconds: longest age of a listing that answers are made from.
    shard_limit: shards whose descriptions stay in memory; beyond it the manifests used least
    recently are dropped, though never the one in use.
    clock: seconds, monotonic.
    """

    def __init__(
        self,
        root: Store,
        *,
        fresh_seconds: float,
        shard_limit: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._seconds, self._clock = root, fresh_seconds, clock
        self._limit = shard_limit
        self._listing = threading.Lock()  # one request lists, the others wait for what it finds
        self._listed_at = -math.inf
        self._versions: Mapping[str, list[int]] = {}
        self._lock = threading.Lock()  # for bookkeeping only, never held while storage is asked
        self._loading: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._manifests: OrderedDict[tuple[str, int], LoadedManifest] = OrderedDict()
        self._summaries: dict[tuple[str, int], wire.DatasetSummary] = {}

    def datasets(self) -> Mapping[str, list[int]]:
        """Name to versions, oldest first, of every dataset that has one; sorted by name."""
        with self._listing:
            now = self._clock()
            if now - self._listed_at >= self._seconds:
                self._versions = _list_all(self._root)
                self._listed_at = now
                self._forget_others()
            return self._versions

    def versions(self, name: str) -> list[int]:
        """Versions of a dataset, oldest first, at least one.

        Raises: InvalidInputError for a name that no dataset may have, NotFoundError.
        """
        check_name(name)
        versions = self.datasets().get(name)
        if versions is None:
            raise NotFoundError(
                f"there is no dataset {name!r}, or nothing was committed to it yet; the list of"
                " datasets names those that stand"
            )
        return versions

    def manifest(self, name: str, version: int | None = None) -> LoadedManifest:
        """A version's manifest, by default the newest.

        Raises: as `versions`; FormatError where the file is not sound.
        """
        wanted = self._choose(name, version)
        key = (name, wanted)
        with self._lock:
            loading = self._loading[name]
        with loading:  # many requests for a manifest that is not in memory read it once
            with self._lock:
                if key in self._manifests:
                    self._manifests.move_to_end(key)
                    return self._manifests[key]
            loaded = load_manifest(self._root, name, wanted)
            with self._lock:
                self._keep(key, loaded)
            return loaded

    def summary(self, name: str, version: int | None = None) -> wire.DatasetSummary:
        """One line about a version; the lines stay in memory where the manifests do not."""
        wanted = self._choose(name, version)
        summary = self._summaries.get((name, wanted))
        if summary is None:
            summary = summarize(self.manifest(name, wanted).manifest)
            with self._lock:
                self._summaries[name, wanted] = summary
        return summary

    def dataset_page(self, after: str, limit: int) -> wire.DatasetList:
        """Up to `limit` datasets in the order of their names, those behind the name `after`.

        A dataset whose manifest cannot be read is left out of the list, with a warning in the log;
        asked for by name it says what is wrong.
        """
        names = list(self.datasets())
        start = bisect_right(names, after)
        page = names[start : start + limit]
        return wire.DatasetList(
            datasets=[one for name in page if (one := self._summary_if_sound(name, None))],
            next=page[-1] if start + limit < len(names) else "",
        )

    def version_page(self, name: str, before: int | None, limit: int) -> wire.DatasetList:
        """Up to `limit` versions of a dataset, newest first, those below `before`.

        Versions whose manifest cannot be read are left out, as in `dataset_page`.
        """
        versions = [v for v in reversed(self.versions(name)) if before is None or v < before]
        page = versions[:limit]
        return wire.DatasetList(
            datasets=[one for version in page if (one := self._summary_if_sound(name, version))],
            next=str(page[-1]) if len(versions) > limit else "",
        )

    def shard_page(
        self, name: str, version: int | None, split: str | None, cursor: str, limit: int
    ) -> tuple[wire.ShardList, str]:
        """(up to `limit` shards of a version, digest of its manifest).

        cursor: empty, or `next` of the page before, which fixes the version.
        """
        start = 0
        if cursor:
            begun, start = parse_shard_cursor(cursor)
            if version not in (None, begun):
                raise InvalidInputError(
                    f"cursor {cursor!r} belongs to version {begun}, the request asks for"
                    f" {version}: leave one of them out"
                )
            version = begun
        loaded = self.manifest(name, version)
        return shard_page(loaded.manifest, split, start, limit), loaded.digest

    def _summary_if_sound(self, name: str, version: int | None) -> wire.DatasetSummary | None:
        try:
            return self.summary(name, version)
        except (FormatError, NotFoundError) as error:
            logger.warning("dataset %s is left out of a list: %s", name, error)
            return None

    def _choose(self, name: str, version: int | None) -> int:
        versions = self.versions(name)
        if version is None:
            return versions[-1]
        if version not in versions:
            raise NotFoundError(
                f"dataset {name!r} has no version {version}; it has {versions[0]} to {versions[-1]}"
            )
        return version

    def _keep(self, key: tuple[str, int], loaded: LoadedManifest) -> None:
        self._manifests[key] = loaded
        held = sum(_shards(one) for one in self._manifests.values())
        while held > self._limit and len(self._manifests) > 1:
            _, dropped = self._manifests.popitem(last=False)
            held -= _shards(dropped)

    def _forget_others(self) -> None:
        """Drop what is known of datasets that do not stand any more."""
        with self._lock:
            for known in (self._manifests, self._summaries):
                for key in [key for key in known if key[0] not in self._versions]:
                    del known[key]
            for name in self._loading.keys() - self._versions.keys():
                del self._loading[name]


def _list_all(root: Store) -> dict[str, list[int]]:
    """Name to versions of every dataset below the root; an empty folder is no dataset yet."""
    names = root.folders()
    with ThreadPoolExecutor(_LISTINGS, thread_name_prefix="seit-list") as pool:
        found = zip(names, pool.map(lambda name: _versions_of(root, name), names), strict=True)
        return {name: versions for name, versions in found if versions}


def _versions_of(root: Store, name: str) -> list[int]:
    try:
        return list_versions(root, name)
    except InvalidInputError:
        return []  # a folder of something else: its name is not a dataset's


def _shards(loaded: LoadedManifest) -> int:
    return sum(len(split.shards) for split in loaded.manifest.splits)
