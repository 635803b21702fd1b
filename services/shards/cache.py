"""The node's cache of decoded shards: verified, bounded in bytes, shared by all its processes.

A shard enters by being fetched, compared with its checksum and decoded once; from then on its
rows are copies out of a mapped file (entry.py) in a folder that survives `kill -9`
(cache_folder.py). Each process checks an entry's checksum when it first opens it, which also
covers the loss of power; so nothing is fsynced, and a damaged entry is fetched again.

What is about to be used, or to be used again, looks just like the rest to eviction: a reader that
knows its order says so with `keep`, and holds those entries until it says otherwise.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import xxhash

from services.errors import FormatError, IntegrityError, InvalidInputError
from services.shards import layout
from services.shards.cache_folder import SUFFIX, EntryFolder, EntryT
from services.shards.checked import NamedFile
from services.shards.column_entry import CachedColumn, ColumnEntryFile
from services.shards.column_file import Part, read_part
from services.shards.entry import ArraysFile, CachedShard, EntryFile, MappedEntry
from services.shards.open_entries import OpenEntries
from services.shards.open_files import most_open_files
from services.shards.store import Store
from services.shards.tally import note
from services.wire.seit import v1 as wire

logger = logging.getLogger(__name__)

_LOCKS = 1024  # files that serialise fetches of one shard; other shards rarely meet
_FETCHES = 3  # a bare one; after a bad checksum two that storage's own checksum guards as well
_DECODES = 2  # at a time in a process; more would multiply the memory, not the speed
_OPEN_SHARE = 2  # entries take at most half of the files that the system lets a process open


@dataclass(frozen=True)
class CacheCounters:
    """What one process got from its cache so far.

    hits, misses: calls that were answered without and with a fetch.
    bytes_fetched: Parquet bytes read from the store, those of repeated fetches included.
    bytes_hit: Parquet bytes that did not have to be read because the node had the entry,
        counted when an entry is opened.
    refetches: fetches repeated because of a bad checksum, on the store or in the cache.
    quarantined: shards given up because their bytes on the store are not the manifest's.
    """

    hits: int = 0
    misses: int = 0
    bytes_fetched: int = 0
    bytes_hit: int = 0
    refetches: int = 0
    quarantined: int = 0


class ShardCache:
    """Decoded shards in one folder of a node, at most `limit_bytes` of them.

    A single shard larger than the limit is still held, alone. Safe to use from threads and
    processes at once; pickling carries folder and limit.
    """

    def __init__(self, directory: Path | str, limit_bytes: int) -> None:
        if limit_bytes < 1:
            raise InvalidInputError(
                f"cache limit of {limit_bytes} bytes: give at least the size of the shards that a "
                "shuffle window mixes, decoded (2 bytes a token)"
            )
        self._limit = limit_bytes
        self._folder = EntryFolder(Path(directory), limit_bytes)
        self._guard, self._decoding = threading.Lock(), threading.Semaphore(_DECODES)
        self._open = OpenEntries(limit_bytes, max(1, most_open_files() // _OPEN_SHARE))
        self._verified: dict[str, int] = {}  # inode of each entry that was found sound
        self._quarantined: set[str] = set()
        self._counts = dict.fromkeys(
            ("hits", "misses", "bytes_fetched", "bytes_hit", "refetches"), 0
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._folder.path, self._limit)

    @property
    def counters(self) -> CacheCounters:
        with self._guard:
            return CacheCounters(**self._counts, quarantined=len(self._quarantined))

    def _count(self, **amounts: int) -> None:
        with self._guard:
            for name, amount in amounts.items():
                self._counts[name] += amount

    def rows(
        self, root: Store, dataset: str, shard: wire.Shard, spec: wire.TokenSpec
    ) -> CachedShard:
        """The shard's rows, fetched from `root` only if this node does not have them.

        IntegrityError, naming both checksums, if the store's bytes stay wrong; FormatError
        if they are not a shard of this spec; NotFoundError and StoreError of the store.
        """

        def decode(data: bytes, name: str) -> EntryFile:
            rows = layout.read_rows(data, spec, shard.rows, name, digest_checked=True)
            return EntryFile(rows, spec)

        def opened(path: Path) -> CachedShard:
            return CachedShard(path, shard, spec)

        return self._entry(root, dataset, shard, shard.xxh3, opened, decode)

    def keep(self, reader: object, root: Store, dataset: str, files: Iterable[NamedFile]) -> None:
        """Hold the entries of these files, once they are here, until `reader` names others.

        Those that it named before are let go: nobody needs them again before long. They are held
        up to half of the limit; past that the one used longest ago goes, and is fetched again.
        """
        named = frozenset(_file_name(root, dataset, file.xxh3) for file in files)
        with self._guard:
            self._open.keep(reader, named)

    def let_go(self) -> None:
        """Hold nothing but what was named to `keep`, so that others may evict it at any time."""
        with self._guard:
            self._open.drop_recent()

    def holds(self, root: Store, dataset: str, shard: wire.Shard) -> bool:
        """Whether this process has the shard's entry open; it may be gone by the next call."""
        with self._guard:
            return _entry_name(root, dataset, shard.xxh3) in self._open

    def column(self, root: Store, dataset: str, part: Part, column: wire.Column) -> CachedColumn:
        """Values of one part of a column, as `column_parts` gives it with its file.

        Errors as `rows`; FormatError also if the file belongs to other rows.
        """

        def decode(data: bytes, name: str) -> ColumnEntryFile:
            return ColumnEntryFile(read_part(data, part, name), part.type)

        def opened(path: Path) -> CachedColumn:
            return CachedColumn(path, part.rows, part.type)

        # An entry is good for this part only: whether it belongs to its rows is seen in the file.
        key = f"{column.xxh3}-{xxhash.xxh3_64_hexdigest(part.describe())}"
        return self._entry(root, dataset, column, key, opened, decode)

    def _entry(
        self,
        root: Store,
        dataset: str,
        file: NamedFile,
        key: str,
        opened: Callable[[Path], EntryT],
        decode: Callable[[bytes, str], ArraysFile],
    ) -> EntryT:
        """The entry of a file under its key, fetched and decoded if this node does not have it."""
        name = _entry_name(root, dataset, key)
        held = self._held(name)
        if held is not None:
            self._count(hits=1)
            return cast(EntryT, held)  # one key is ever opened in one way
        # What the system refuses is the folder's: the storage's errors are told as such.
        lock = f"fetch-{int(file.xxh3[:8], 16) % _LOCKS}"
        with self._folder.usable(), self._folder.lock(lock):
            held = self._held(name)
            if held is not None:  # another thread opened it while this one waited
                self._count(hits=1)
                return cast(EntryT, held)
            entry = self._open_entry(name, opened)
            if entry is not None:
                self._count(hits=1, bytes_hit=file.bytes)
                note(bytes_hit=file.bytes)
            else:
                self._count(misses=1)
                folder = root.child(dataset)
                data = self._fetch(folder, file)
                with self._decoding:
                    laid = decode(data, f"{folder.url}/{file.path}")
                    del data  # as large as the file, and not needed while it is laid down
                    entry = self._folder.lay_down(name, laid, opened, self._evicted)
                    self._verified[name] = entry.inode
                    del laid
                    pa.default_memory_pool().release_unused()  # Arrow would keep it for later
            with self._guard:
                self._open.add(name, entry)
        return entry

    def _held(self, name: str) -> MappedEntry | None:
        with self._guard, self._folder.usable():
            entry = self._open.get(name)
            if entry is None:
                return None
            if not entry.touch(self._folder.path / name):
                self._open.drop(name)  # evicted: holding on to it would keep its disk space taken
                self._verified.pop(name, None)
                return None
            self._open.used(name)
            return entry

    def _open_entry(self, name: str, opened: Callable[[Path], EntryT]) -> EntryT | None:
        """The entry if it stands and is sound; a damaged one is removed."""
        path = self._folder.path / name
        try:
            entry = opened(path)
            if self._verified.get(name) != entry.inode and not entry.check_payload():
                raise FormatError(f"{path}: the payload is damaged")
        except FileNotFoundError:
            return None
        except FormatError as error:
            logger.warning("cache entry dropped, its file is fetched again: %s", error)
            path.unlink(missing_ok=True)
            self._count(refetches=1)
            note(refetches=1)
            return None
        self._verified[name] = entry.inode
        entry.touch(path)
        return entry

    def _fetch(self, folder: Store, file: NamedFile) -> bytes:
        found = ""
        for attempt in range(_FETCHES):
            data = folder.read(file.path) if attempt else folder.read_bare(file.path)
            self._count(bytes_fetched=len(data), refetches=min(attempt, 1))
            note(bytes_fetched=len(data), refetches=min(attempt, 1))
            found = xxhash.xxh3_128_hexdigest(data)
            if found == file.xxh3:
                return data
            logger.warning("%s/%s: bad checksum %s", folder.url, file.path, found)
        with self._guard:
            self._quarantined.add(file.xxh3)
        raise IntegrityError(
            f"{folder.url}/{file.path}: fetched {_FETCHES} times, found xxh3 {found}, expected "
            f"{file.xxh3}: the file on storage is damaged; restore it, or write it again and "
            "commit a new version"
        )

    def _evicted(self, name: str) -> None:
        with self._guard:
            self._open.drop(name)
            self._verified.pop(name, None)


def _file_name(root: Store, dataset: str, digest: str) -> str:
    """What a file's entries begin with: the dataset's address first, which eviction sorts by."""
    return f"{xxhash.xxh3_64_hexdigest(f'{root.url}/{dataset}'.encode())}-{digest}"


def _entry_name(root: Store, dataset: str, key: str) -> str:
    return _file_name(root, dataset, key) + SUFFIX
