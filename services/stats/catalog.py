"""The newest state of a root, at hand: what datasets and versions stand, and what they hold.

A listing serves for `fresh_seconds`, so a new version is seen soon and requests do not each list
the bucket. A version is read once and kept while there is room, and its file is the one it was.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

from services.errors import NotFoundError, SeitError, StoreError
from services.shards.manifest import as_one_dataset
from services.shards.validate import check_name
from services.stats.apart import Work
from services.stats.audits import Audits
from services.stats.facts import Facts, load_facts
from services.stats.fresh import Fresh
from services.stats.growth import version_storage
from services.stats.health import standing_findings
from services.stats.listing import ShardQuery, shard_page
from services.stats.orders import Orders
from services.stats.paging import Page, parse_cursor
from services.stats.standing import Key, Listing, Versions, list_all, made_anew, newest
from services.stats.written import Written
from services.wire.seit import v1 as wire

logger = logging.getLogger(__name__)

_DEFECTS = (ValueError, ArithmeticError, LookupError, MemoryError)
"""What numbers and names of one dataset may lead to where no check foresaw them (pydantic's errors
are ValueErrors): it is left out of lists with a traceback in the log, and the others are told of. A
fault of the program alone, a wrong type or attribute, is not hidden."""

_ORDER_BYTES = 2**25  # of all orders of shards that are kept
_LISTINGS = 16
"""Folders listed at the same time: one after another, an object store takes a second for 50."""
_DATASETS_A_LISTING = 12
"""Where nobody waits, one folder at a time is listed for so many datasets: all at once would take
the cores from the answers."""
_READ_SECONDS = 1.0
"""Time in which new versions are read before they are shown, so that nobody waits for them."""


class Catalog:
    """Datasets below a root. Safe to share by threads.

    work: on the root. fresh_seconds: longest age of a listing that answers are made from.
    shard_limit: shards whose descriptions stay in memory, of some 700 bytes; many labels count as
    more of them. Beyond it the versions used least recently are dropped, though never the one in
    use.
    audit_seconds: longest age of a listing of a dataset's files.
    clock: seconds, monotonic.
    """

    def __init__(
        self,
        work: Work,
        *,
        fresh_seconds: float,
        shard_limit: int,
        audit_seconds: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._work, self._clock = work, clock
        self._limit = shard_limit
        self._seen: Listing | None = None
        self._changes = itertools.count(1)
        self._listing = Fresh(self._list, fresh_seconds, clock)
        self._lock = threading.Lock()  # for bookkeeping only, never held while storage is asked
        self._loading: dict[Key, Future[Facts]] = {}
        self._facts: OrderedDict[Key, Facts] = OrderedDict()
        self._held = 0  # their weight
        self._summaries: dict[Key, wire.DatasetSummary] = {}
        self._growth: dict[Key, wire.VersionStorage] = {}
        self._orders = Orders(_ORDER_BYTES)
        self._findings: dict[Key, list[wire.Finding]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="seit-read")
        self._audits = Audits(work, self.versions, audit_seconds, clock)

    def datasets(self) -> Mapping[str, Versions]:
        """Name to versions of every dataset that has one; sorted by name."""
        return self._listing.get().versions

    def stamp(self, name: str | None) -> int | None:
        """Changes with what stands of one dataset, or of all for None.

        None where it is not known without asking the storage.
        """
        if name is None:
            return self._listing.stamp()
        listing = self._listing.at_hand()
        return None if listing is None else listing.stamps.get(name, 0)

    def folder_stamp(self, name: str | None) -> int | None:
        """Changes with what `folder` knows of a dataset, and when it is time to ask it again."""
        return self._audits.stamp(name) if name else None

    def at_hand(self, name: str | None, version: int | None = None) -> bool:
        """Whether a version (the newest of all datasets for None) is answered without waiting."""
        listing = self._listing.at_hand()
        if listing is None:
            return False
        if name is None:
            return all(_newest(*one) in self._summaries for one in listing.versions.items())
        seen = listing.versions.get(name)
        if seen is None:
            return True
        number = version or newest(seen)
        return number in seen and (name, number, seen[number]) in self._facts

    def history_at_hand(self, name: str) -> bool:
        """Whether all versions of a dataset are told of, and their growth, without waiting."""
        listing = self._listing.at_hand()
        if listing is None:
            return False
        keys = [(name, number, mark) for number, mark in listing.versions.get(name, {}).items()]
        needed = {
            one
            for before, key in zip([None, *keys], keys, strict=False)
            if key not in self._growth
            for one in (before, key)
        }
        return all(key in self._summaries for key in keys) and all(
            key in self._facts for key in needed if key
        )

    def warm(self) -> None:
        """Read the newest version of every dataset, as far as there is room; log what fails, and
        where none can be found."""
        try:
            datasets = self.datasets()
            self._read_newest(datasets)
            own = "" if datasets else self._work(as_one_dataset)
            if own:
                logger.warning("no dataset is found below the root, as %s", own)
        except (SeitError, OSError) as error:
            logger.warning("nothing is known of the datasets yet: %s", error)

    def close(self) -> None:
        """End what runs beside the requests; what was asked of it is not begun any more."""
        self._reader.shutdown(wait=False, cancel_futures=True)
        self._audits.close()
        self._work.close()

    def _list(self, waited: bool) -> Listing:
        known = len(self._seen.versions) if self._seen else 0
        few = min(max(2, known // _DATASETS_A_LISTING), _LISTINGS)
        versions = self._work(list_all, _LISTINGS if waited else few)
        before = self._seen or Listing({}, {})
        stamps = {
            name: before.stamps[name] if before.versions.get(name) == seen else next(self._changes)
            for name, seen in versions.items()
        }
        found = Listing(versions, stamps)
        self._forget_others(before, found)
        if not waited:
            # Nobody shall wait for what is new: it is read before it is shown, but only for a
            # moment, or the listing would grow old meanwhile. A service that ends reads no more.
            with contextlib.suppress(RuntimeError, TimeoutError, CancelledError):
                self._reader.submit(self._read_newest, versions).result(_READ_SECONDS)
        self._seen = found
        return found

    def _read_newest(self, versions: Mapping[str, Versions]) -> None:
        for name, seen in versions.items():
            key = _newest(name, seen)
            if key not in self._summaries:
                try:
                    self._load(key)
                except (SeitError, OSError) as error:
                    logger.warning("%s version %d: %s", name, newest(seen), error)
                except _DEFECTS:
                    logger.exception("%s version %d cannot be read", name, newest(seen))

    def versions(self, name: str) -> list[int]:
        """Versions of a dataset, oldest first, at least one.

        Raises: InvalidInputError for a name that no dataset may have, NotFoundError.
        """
        return list(self._versions(name))

    def _versions(self, name: str) -> Versions:
        check_name(name)
        versions = self.datasets().get(name)
        if versions is None:
            raise NotFoundError(
                f"there is no dataset {name!r}, or nothing was committed to it yet; the list of"
                " datasets names those that stand"
            )
        return versions

    def facts(self, name: str, version: int | None = None) -> Facts:
        """What stands as a version, by default the newest.

        Raises: as `versions`; FormatError where the file is not sound.
        """
        return self._load(self._choose(name, version))

    def _load(self, key: Key) -> Facts:
        name, number, _ = key
        with self._lock:
            if key in self._facts:
                self._facts.move_to_end(key)
                return self._facts[key]
            others = self._loading.get(key)
            mine = self._loading.setdefault(key, Future())
        if others is not None:
            # Many requests for a version that is not in memory read it once; where the storage does
            # not answer they hear so together, and do not wait for it one after another.
            return others.result()
        try:
            facts = self._work(load_facts, name, number)
            findings = standing_findings(facts)
        except BaseException as error:
            with self._lock:
                del self._loading[key]
            mine.set_exception(error)
            raise
        with self._lock:
            self._keep(key, facts)
            self._summaries[key], self._findings[key] = facts.summary, findings
            del self._loading[key]
        mine.set_result(facts)
        return facts

    def summary(self, name: str, version: int | None = None) -> wire.DatasetSummary:
        """One line about a version; the lines stay in memory where the manifests do not."""
        key = self._choose(name, version)
        return self._summaries.get(key) or self._load(key).summary

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
    ) -> Written[wire.ShardList]:
        """Up to `limit` shards of a version.

        cursor: empty, or `next` of the page before, which fixes the version.
        """
        version, start = parse_cursor(cursor, version)
        facts = self.facts(name, version)
        page = Page(facts.about.version, start, limit)
        return shard_page(facts, self._orders.get(facts, query), page)

    def growth_page(self, name: str, before: int | None, limit: int) -> wire.GrowthReport:
        """Up to `limit` versions, newest first, those below `before`: what each one added."""
        versions = [v for v in reversed(self.versions(name)) if before is None or v < before]
        return wire.GrowthReport(
            dataset=name,
            versions=[self._version_storage(name, version) for version in versions[:limit]],
            next=str(versions[limit - 1]) if len(versions) > limit else "",
        )

    def _version_storage(self, name: str, version: int) -> wire.VersionStorage:
        key = self._choose(name, version)
        found = self._growth.get(key)
        if found is None:
            earlier = [one for one in self.versions(name) if one < version]
            before = self.facts(name, earlier[-1]) if earlier else None
            found = version_storage(self._load(key), before)
            with self._lock:
                self._growth[key] = found
        return found

    def folder(self, name: str) -> wire.FolderAudit | None:
        """The dataset's files as they were listed last; None before that. Never waits."""
        self.versions(name)
        return self._audits.get(name)

    def findings(self, name: str, version: int | None = None) -> list[wire.Finding]:
        """What the manifest tells of a version's health; kept where the manifest is not."""
        key = self._choose(name, version)
        found = self._findings.get(key)
        return standing_findings(self._load(key)) if found is None else found

    def _summary_if_sound(self, name: str, version: int | None) -> wire.DatasetSummary | None:
        try:
            return self.summary(name, version)
        except StoreError:
            raise  # the storage is out, and with it not this dataset alone
        except SeitError as error:
            logger.warning("dataset %s is left out of a list: %s", name, error)
        except _DEFECTS:
            logger.exception("dataset %s is left out of a list", name)
        return None

    def _choose(self, name: str, version: int | None) -> Key:
        versions = self._versions(name)
        if version is None:
            return _newest(name, versions)
        if version not in versions:
            raise NotFoundError(
                f"dataset {name!r} has no version {version}; it has {min(versions)} to"
                f" {newest(versions)}"
            )
        return name, version, versions[version]

    def _keep(self, key: Key, facts: Facts) -> None:
        self._facts[key] = facts
        self._held += facts.weight
        while self._held > self._limit and len(self._facts) > 1:
            _, dropped = self._facts.popitem(last=False)
            self._held -= dropped.weight

    def _forget_others(self, before: Listing, now: Listing) -> None:
        """Drop what is known of versions that do not stand any more, or not as they did."""
        with self._lock:
            for key in [key for key in self._facts if not now.holds(key)]:
                self._held -= self._facts.pop(key).weight
            known: Sequence[dict[Key, Any]] = (self._summaries, self._growth, self._findings)
            for held in known:
                for key in [key for key in held if not now.holds(key)]:
                    del held[key]
        self._orders.forget_others(now.versions)
        same = {
            name
            for name, seen in now.versions.items()
            if not made_anew(before.versions.get(name, {}), seen)
        }
        self._audits.forget_others(same)


def _newest(name: str, versions: Versions) -> Key:
    number = newest(versions)
    return name, number, versions[number]
