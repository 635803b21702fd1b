"""The newest state of a root, at hand: what datasets and versions stand, and their manifests.

A listing serves for `fresh_seconds`, so a new version is seen soon and requests do not each list
the bucket. A manifest never changes, so it is read once and kept while there is room.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from services.errors import FormatError, InvalidInputError, NotFoundError, SeitError
from services.shards.manifest import LoadedManifest, file_sizes, list_versions, load_manifest
from services.shards.store import Store
from services.shards.validate import check_name
from services.stats.fresh import Fresh
from services.stats.growth import audit, version_storage
from services.stats.health import standing_findings
from services.stats.listing import ShardQuery, shard_order, shard_page
from services.stats.paging import Page, parse_cursor
from services.stats.report import summarize
from services.types import IntArray
from services.wire.seit import v1 as wire

logger = logging.getLogger(__name__)

_LABELS_A_SHARD = 64
"""Labels that take as much memory as the rest of a shard's description, about 1 KB."""
_ORDERS = 256  # orders of shards that are kept: 8 bytes a shard each
_LISTINGS = 16
"""Folders listed at the same time: one after another, an object store takes a second for 50."""


class Catalog:
    """Datasets below `root`. Safe to share by threads.

    fresh_seconds: longest age of a listing that answers are made from.
    shard_limit: shards whose descriptions stay in memory, of about 1 KB; many labels count as more
    of them. Beyond it the manifests used least recently are dropped, though never the one in use.
    audit_seconds: longest age of a listing of a dataset's files.
    clock: seconds, monotonic.
    """

    def __init__(
        self,
        root: Store,
        *,
        fresh_seconds: float,
        shard_limit: int,
        audit_seconds: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._clock = root, clock
        self._limit = shard_limit
        self._listing = Fresh(self._list, fresh_seconds, clock)
        self._lock = threading.Lock()  # for bookkeeping only, never held while storage is asked
        self._loading: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._manifests: OrderedDict[tuple[str, int], LoadedManifest] = OrderedDict()
        self._summaries: dict[tuple[str, int], wire.DatasetSummary] = {}
        self._growth: dict[tuple[str, int], wire.VersionStorage] = {}
        self._orders: OrderedDict[tuple[str, int, ShardQuery], IntArray] = OrderedDict()
        self._audit_seconds = audit_seconds
        self._audits: dict[str, tuple[float, wire.FolderAudit]] = {}
        self._auditing: set[str] = set()
        self._audited = 0
        self._findings: dict[tuple[str, int], list[wire.Finding]] = {}
        self._auditor = ThreadPoolExecutor(1, thread_name_prefix="seit-audit")

    def datasets(self) -> Mapping[str, list[int]]:
        """Name to versions, oldest first, of every dataset that has one; sorted by name."""
        return self._listing.get()

    def stamp(self) -> int | None:
        """Changes with what stands; None where it is not known without asking the storage."""
        return self._listing.stamp()

    def at_hand(self, name: str | None, version: int | None) -> bool:
        """Whether a version (the newest of all datasets for None) is answered without waiting."""
        if self._listing.stamp() is None:
            return False
        versions = self._listing.get()
        with self._lock:
            if name is None:
                return all((one, seen[-1]) in self._summaries for one, seen in versions.items())
            numbers = versions.get(name)
            return numbers is None or (name, version or numbers[-1]) in self._manifests

    def warm(self) -> None:
        """Read the newest manifest of every dataset, as far as there is room; log what fails."""
        try:
            self._load_newest(self.datasets())
        except (SeitError, OSError) as error:
            logger.warning("nothing is known of %s yet: %s", self._root.url, error)

    def close(self) -> None:
        """End what runs beside the requests; what was asked of it is not begun any more."""
        self._auditor.shutdown(wait=False, cancel_futures=True)

    def _list(self, waited: bool) -> Mapping[str, list[int]]:
        versions = _list_all(self._root)
        self._forget_others(versions)
        if not waited:
            # No request shall wait for a new version's manifest either. Not read here: the listing
            # would grow old meanwhile. A service that ends takes no more work.
            with contextlib.suppress(RuntimeError):
                self._auditor.submit(self._load_newest, versions)
        return versions

    def _load_newest(self, versions: Mapping[str, list[int]]) -> None:
        for name, numbers in versions.items():
            if (name, numbers[-1]) not in self._summaries:
                try:
                    self._load(name, numbers[-1])
                except (SeitError, OSError) as error:
                    logger.warning("%s version %d: %s", name, numbers[-1], error)

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
        return self._load(name, self._choose(name, version))

    def _load(self, name: str, wanted: int) -> LoadedManifest:
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
                self._summaries[key] = summarize(loaded.manifest)
            return loaded

    def summary(self, name: str, version: int | None = None) -> wire.DatasetSummary:
        """One line about a version; the lines stay in memory where the manifests do not."""
        wanted = self._choose(name, version)
        summary = self._summaries.get((name, wanted))
        return summary or summarize(self._load(name, wanted).manifest)

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
        self, name: str, version: int | None, query: ShardQuery, cursor: str, limit: int
    ) -> tuple[wire.ShardList, str]:
        """(up to `limit` shards of a version, digest of its manifest).

        cursor: empty, or `next` of the page before, which fixes the version.
        """
        version, start = parse_cursor(cursor, version)
        loaded = self.manifest(name, version)
        page = Page(loaded.manifest.version, start, limit)
        return shard_page(loaded.manifest, self._order(loaded, query), page), loaded.digest

    def growth_page(self, name: str, before: int | None, limit: int) -> wire.GrowthReport:
        """Up to `limit` versions, newest first, those below `before`: what each one added."""
        versions = [v for v in reversed(self.versions(name)) if before is None or v < before]
        return wire.GrowthReport(
            dataset=name,
            versions=[self._version_storage(name, version) for version in versions[:limit]],
            next=str(versions[limit - 1]) if len(versions) > limit else "",
        )

    def _version_storage(self, name: str, version: int) -> wire.VersionStorage:
        found = self._growth.get((name, version))
        if found is None:
            earlier = [one for one in self.versions(name) if one < version]
            before = self._load(name, earlier[-1]).manifest if earlier else None
            found = version_storage(self._load(name, version).manifest, before)
            with self._lock:
                self._growth[name, version] = found
        return found

    def folder(self, name: str) -> wire.FolderAudit | None:
        """The dataset's files as they were listed last; None before that.

        Never waits: a listing takes a second for every few thousand files, and all versions are
        read for it. An old one is made again beside the requests, one dataset at a time.
        """
        self.versions(name)
        now = self._clock()
        with self._lock:
            at, found = self._audits.get(name, (-math.inf, None))
            if now - at >= self._audit_seconds and name not in self._auditing:
                self._auditing.add(name)
                self._auditor.submit(self._audit, name)
        return found

    def folder_stamp(self) -> int:
        """Changes with what `folder` knows, and when it is time to ask it again."""
        with self._lock:
            return self._audited + int(self._clock() / self._audit_seconds)

    def findings(self, name: str, version: int | None = None) -> list[wire.Finding]:
        """What the manifest tells of a version's health; kept where the manifest is not."""
        wanted = self._choose(name, version)
        found = self._findings.get((name, wanted))
        if found is None:
            found = standing_findings(self._load(name, wanted).manifest)
            with self._lock:
                self._findings[name, wanted] = found
        return found

    def _audit(self, name: str) -> None:
        try:
            began = self._clock()
            versions = [file_sizes(self._load(name, one).manifest) for one in self.versions(name)]
            found = audit(self._root.child(name).scan(), versions, time.time())
            with self._lock:
                self._audits[name] = began, found
                self._audited += 1
        except (SeitError, OSError) as error:
            logger.warning("the folder of %s is not compared with its versions: %s", name, error)
        finally:
            with self._lock:
                self._auditing.discard(name)

    def _order(self, loaded: LoadedManifest, query: ShardQuery) -> IntArray:
        key = (loaded.manifest.dataset, loaded.manifest.version, query)
        with self._lock:
            if key in self._orders:
                self._orders.move_to_end(key)
                return self._orders[key]
        order = shard_order(loaded.manifest, query)
        with self._lock:
            self._orders[key] = order
            if len(self._orders) > _ORDERS:
                self._orders.popitem(last=False)
        return order

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
        held = sum(_weight(one) for one in self._manifests.values())
        while held > self._limit and len(self._manifests) > 1:
            _, dropped = self._manifests.popitem(last=False)
            held -= _weight(dropped)

    def _forget_others(self, versions: Mapping[str, list[int]]) -> None:
        """Drop what is known of datasets that do not stand any more."""
        with self._lock:
            known: Sequence[dict[Any, Any]] = (
                self._manifests,
                self._summaries,
                self._growth,
                self._findings,
                self._orders,
            )
            for held in known:
                for key in [key for key in held if key[0] not in versions]:
                    del held[key]
            for name in self._loading.keys() - versions.keys():
                del self._loading[name]
            for name in self._audits.keys() - versions.keys():
                del self._audits[name]


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


def _weight(loaded: LoadedManifest) -> int:
    """What it takes in memory, in shards with few labels."""
    shards = [shard for split in loaded.manifest.splits for shard in split.shards]
    labels = sum(len(shard.labels.labels) for shard in shards if shard.labels)
    columns = sum(len(shard.columns) for shard in shards)
    return len(shards) + columns + labels // _LABELS_A_SHARD
