"""The folder of a node's cache: entries come and go, whole, whatever its processes die of.

- An entry appears under its name by a rename. Until then its writer holds an exclusive lock on
  the temporary file: one that nobody holds is of a writer that died, and is removed.
- Who makes room, begins a file or names it holds the write lock; nobody holds it while content is
  made and written, so several shards are laid down side by side.
- The write lock's file tells how many bytes the entries take, at most: to look through the folder
  for each new one would cost more than to fetch it, where there are thousands.
- Locks are flocks, which the system takes back from a dead process. They are given back by hand,
  not with their file: a process that was forked meanwhile holds a copy of it.

Eviction: an epoch visits every shard once, in an order of its own. The entry that was used last
is thus the one that is needed again last, and dropping the least recently used would drop what
comes next (with a cache of half the data, it would never hit). So the most recently used of the
entries that nobody holds goes first, after those of datasets that nobody reads any more. Up to a
64th of the limit more goes with it, so that a full folder is looked through once for many entries,
not for each.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from services.errors import StoreError
from services.shards.entry import ArraysFile, MappedEntry

logger = logging.getLogger(__name__)

SUFFIX = ".rows"
_UNFINISHED = ".tmp"
_IDLE_DATASET_SECONDS = 600.0
_TRIES = 4  # to lay an entry down where somebody tidies up, or fills the disk, meanwhile
_SPARE_SHARE = 64  # of the limit, at most, that is made free beyond what is needed
_DIGITS = 20  # of the bytes that all entries take: of one length, so that a write is whole

EntryT = TypeVar("EntryT", bound=MappedEntry)


@dataclass(frozen=True)
class _Use:
    """An entry as eviction sees it: file name, size, time of last use (Unix seconds)."""

    name: str
    bytes: int
    used: float

    @property
    def dataset(self) -> str:
        return self.name.partition("-")[0]


class EntryFolder:
    """Entries of at most `limit` bytes, those that are being written included.

    Raises: StoreError where no folder can be made.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path, self._limit = path, limit
        self._locks = path / "locks"
        self._looked_through = False
        with self.usable():
            self._locks.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def usable(self) -> Iterator[None]:
        """What the system refuses meanwhile becomes a StoreError that names the folder."""
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cache folder {self.path}: {error}: no shard can be laid down there; give "
                "another as SEIT_CACHE_DIR, or mend this one"
            ) from error

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[int]:
        """Held by one thread of one process at a time. Gives the handle of the lock's file."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            file = os.open(self._locks / name, flags, 0o666)
        except FileNotFoundError:  # whoever tidies up old files has taken the folder
            self._locks.mkdir(parents=True, exist_ok=True)
            file = os.open(self._locks / name, flags, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield file
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)
        finally:
            os.close(file)

    def lay_down(
        self,
        name: str,
        file: ArraysFile,
        opened: Callable[[Path], EntryT],
        evicted: Callable[[str], None],
    ) -> EntryT:
        """Write an entry, and open it by its path.

        evicted: called with the name of each entry that had to make room.
        Errors as those of the content; StoreError if the folder does not take it.
        """
        tries = _TRIES
        while True:
            tries -= 1
            try:
                return self._laid_down(name, file, opened, evicted)
            except FileNotFoundError as error:  # taken by whoever tidies up, or its folder
                if not tries:
                    raise StoreError(
                        f"cache folder {self.path}: {error}: somebody takes files away as they are"
                        " written; let them leave it alone, or give another as SEIT_CACHE_DIR"
                    ) from error
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                if not (full and tries and self._gives_way(file.bytes)):
                    raise StoreError(
                        f"cache folder {self.path}: {error}; it needs {file.bytes} bytes more: "
                        "free space, or lower the cache's limit"
                    ) from error

    def _laid_down(
        self,
        name: str,
        file: ArraysFile,
        opened: Callable[[Path], EntryT],
        evicted: Callable[[str], None],
    ) -> EntryT:
        temporary = self.path / f".{secrets.token_hex(8)}{_UNFINISHED}"
        try:
            with self._begun(temporary, file.bytes, evicted) as target:
                file.write(target)
                target.flush()
                with self.lock("write"):
                    fcntl.flock(target, fcntl.LOCK_UN)
                    # Opened, and so in use, before others can see it and choose it for eviction.
                    entry = opened(temporary)
                    os.replace(temporary, self.path / name)
                return entry
        finally:
            temporary.unlink(missing_ok=True)

    def _gives_way(self, wanted: int) -> bool:
        """On a disk that is full below the limit: keep to the bytes of the entries that stand now,
        of which the next ones then take the place. False where these are less than `wanted`.
        """
        with self.lock("write"):
            there = sum(entry.bytes for entry in self._look_at()[0])
            if there < wanted:
                return False
            if there < self._limit:
                logger.warning(
                    "cache folder %s: its disk is full, with %d bytes of at most %d in the cache:"
                    " from now on this process lets older shards go to take in others, and fetches"
                    " them anew; free space, or lower the limit (SEIT_CACHE_BYTES)",
                    *(self.path, there, self._limit),
                )
                self._limit = there
        return True

    @contextlib.contextmanager
    def _begun(
        self, temporary: Path, size: int, evicted: Callable[[str], None]
    ) -> Iterator[BinaryIO]:
        """A new file of that size that is locked, and so safe from those who clean up."""
        with self.lock("write") as account:
            self._make_room(size, evicted, account)
            target = open(temporary, "xb")  # noqa: SIM115 - closed below, without the write lock
            fcntl.flock(target, fcntl.LOCK_EX)
            target.truncate(size)  # others make room for all of it
        try:
            yield target
        finally:
            with contextlib.suppress(OSError):  # of what a full disk did not take: already told
                fcntl.flock(target, fcntl.LOCK_UN)
                target.close()

    def _make_room(self, wanted: int, evicted: Callable[[str], None], account: int) -> None:
        """Remove entries until `wanted` more bytes fit; the caller holds the write lock.

        account: the lock's file. It tells too much where others than eviction took entries away,
        and nothing once it was taken away itself. The folder is then looked through, and once by
        each process, which clears away what the dead left.
        """
        told = os.pread(account, _DIGITS, 0)
        there = int(told) if told.isdigit() and self._looked_through else None
        if there is None or there + wanted > self._limit:
            there = self._look_through(wanted, evicted)
            self._looked_through = True
        os.pwrite(account, b"%0*d" % (_DIGITS, there + wanted), 0)

    def _look_through(self, wanted: int, evicted: Callable[[str], None]) -> int:
        """Bytes of all entries, of which some have made room for `wanted` more, and a bit beyond
        where it takes none that somebody holds."""
        entries, unfinished = self._look_at()
        there = unfinished + sum(entry.bytes for entry in entries)
        room = self._limit - wanted
        if there <= room:
            return there
        least = room - self._limit // _SPARE_SHARE
        idle_first = [(entry, False) for entry in _eviction_order(entries)]
        in_use = [(entry, True) for entry in sorted(entries, key=lambda entry: entry.used)]
        for entry, force in idle_first + in_use:
            if there <= room and (force or there - entry.bytes < least):
                break
            if self._evict(entry.name, force):
                evicted(entry.name)
                there -= entry.bytes
        return there

    def _look_at(self) -> tuple[list[_Use], int]:
        """The entries, and the bytes that those being written will have."""
        entries, unfinished = [], 0
        with os.scandir(self.path) as found:
            for file in found:
                with contextlib.suppress(FileNotFoundError):  # damaged, and removed, by a reader
                    if file.name.endswith(_UNFINISHED):
                        unfinished += _bytes_being_written(file.path)
                    elif file.name.endswith(SUFFIX):
                        stat = file.stat()
                        entries.append(_Use(file.name, stat.st_size, stat.st_mtime))
        return entries, unfinished

    def _evict(self, name: str, force: bool) -> bool:
        path = self.path / name
        try:
            with open(path, "rb") as file:
                if not force:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except (BlockingIOError, FileNotFoundError):
            return False
        return True


def _bytes_being_written(path: str) -> int:
    """Size that an unfinished file will have; 0 for one whose writer died, which is removed."""
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.fstat(file.fileno()).st_size
        os.unlink(path)
        return 0


def _eviction_order(entries: list[_Use]) -> list[_Use]:
    """Entries in the order in which they may go while nobody holds them; see the module's text."""
    last_use: dict[str, float] = {}
    for entry in entries:
        last_use[entry.dataset] = max(entry.used, last_use.get(entry.dataset, entry.used))
    cut = time.time() - _IDLE_DATASET_SECONDS

    def rank(entry: _Use) -> tuple[bool, float]:
        active = last_use[entry.dataset] > cut
        return active, -entry.used if active else entry.used

    return sorted(entries, key=rank)
