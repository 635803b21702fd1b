"""The entries of a node's cache that one process has open, in order of use."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress

from services.shards.cache_folder import SUFFIX
from services.shards.entry import MappedEntry

_KEPT_SHARE = 2  # a process holds at most half of the limit, so that another can bring something in
_RECENT_SHARE = 8  # and, of what nobody asked it to keep, an eighth


class OpenEntries:
    """Entries by name, whose first two parts are their file. Not safe to use from several threads.

    Some were asked for by readers that need them again, as long as these live. The others are
    recent. Sums are kept, not added up: a process may have hundreds of thousands open.

    limit: bytes of the cache. most: how many may be open.
    """

    def __init__(self, limit: int, most: int) -> None:
        self._limit, self._most = limit, most
        self._all: OrderedDict[str, MappedEntry] = OrderedDict()  # the last one used last
        self._recent: OrderedDict[str, None] = OrderedDict()  # those that nobody keeps, likewise
        self._bytes = self._recent_bytes = 0
        self._wanted: weakref.WeakKeyDictionary[object, frozenset[str]] = (
            weakref.WeakKeyDictionary()
        )
        self._kept: frozenset[str] = frozenset()  # files that any reader wants
        self._readers = 0  # how many there were then

    def __contains__(self, name: str) -> bool:
        return name in self._all

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def get(self, name: str) -> MappedEntry | None:
        return self._all.get(name)

    def used(self, name: str) -> None:
        """Note that an open one was used."""
        self._all.move_to_end(name)
        if name in self._recent:
            self._recent.move_to_end(name)

    def add(self, name: str, entry: MappedEntry) -> None:
        """Hold an entry, and let go of those that are too many, the ones used longest ago first."""
        self.drop(name)
        if len(self._wanted) != self._readers:  # one has ended
            self._sort()
        self._all[name] = entry
        self._bytes += entry.file_bytes
        if _file_of(name) not in self._kept:
            self._recent[name] = None
            self._recent_bytes += entry.file_bytes
        while len(self._recent) > 1 and self._recent_bytes > self._limit // _RECENT_SHARE:
            self.drop(next(iter(self._recent)))
        while len(self._all) > 1 and self._bytes > self._limit // _KEPT_SHARE:
            self.drop(next(iter(self._all)))
        while len(self._all) > self._most:
            self.drop(next(iter(self._all)))

    def drop(self, name: str) -> None:
        """Let go of an entry, if it is open."""
        entry = self._all.pop(name, None)
        if entry is None:
            return
        self._bytes -= entry.file_bytes
        with suppress(KeyError):
            del self._recent[name]
            self._recent_bytes -= entry.file_bytes

    def drop_recent(self) -> None:
        """Let go of all that nobody keeps."""
        self._sort()
        for name in list(self._recent):
            self.drop(name)

    def keep(self, reader: object, files: frozenset[str]) -> None:
        """Note which files `reader` needs from now on; what it alone needed before is let go."""
        before = self._wanted.get(reader, frozenset())
        self._wanted[reader] = files
        self._sort()
        over = before - self._kept
        for name in [name for name in self._recent if _file_of(name) in over]:
            self.drop(name)

    def _sort(self) -> None:
        """Tell the recent ones from those that are kept anew."""
        wanted = list(self._wanted.values())  # at once: a reader may end meanwhile
        self._readers = len(wanted)
        self._kept = frozenset().union(*wanted)
        self._recent = OrderedDict(
            (name, None) for name in self._all if _file_of(name) not in self._kept
        )
        self._recent_bytes = sum(self._all[name].file_bytes for name in self._recent)


def _file_of(name: str) -> str:
    """The file's part of an entry's name: an entry may be of a part of the file."""
    return "-".join(name.removesuffix(SUFFIX).split("-")[:2])
