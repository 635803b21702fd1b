"""One folder of files behind a URL: a plain path, file://, s3://, gs:// or memory://.

Every write is whole or absent: a reader never meets half a file. `create` is the exclusive form,
on which the commit of a manifest rests: of many writers of one name exactly one hears True.
"""

from __future__ import annotations

import errno
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any, TypeAlias, TypeVar
from urllib.parse import unquote

import xxhash

from services.errors import FormatError, InvalidInputError, NotFoundError, StoreError
from services.shards.retry import RetryCounter, RetryPolicy

T = TypeVar("T")

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Entry:
    """A file of a listing: path relative to the store, size, time of last change (Unix seconds)."""

    path: str
    bytes: int
    modified: float


Entries: TypeAlias = list[Entry]
Names: TypeAlias = list[str]


def check_path(path: str) -> str:
    """The path itself if it stays inside its root; InvalidInputError otherwise.

    Valid are parts joined by single `/`, none of them empty, `.` or `..`, without backslash or
    control characters.
    """
    bad = (
        any(part in ("", ".", "..") for part in path.split("/"))
        or "\\" in path
        or not path.isprintable()
    )
    if bad:
        raise InvalidInputError(
            f"path {path!r} is not a plain relative path (no '..', no leading or doubled '/', no "
            "backslash, no control characters): it could name a file outside its folder"
        )
    return path


class Store(ABC):
    """Files below one URL. Paths are relative, with `/`; errors are those of services.errors.

    Picklable (the options travel, an open connection does not) and safe to share by threads.
    """

    def __init__(
        self,
        url: str,
        options: dict[str, Any],
        retry: RetryPolicy,
        counter: RetryCounter | None = None,
    ) -> None:
        self.url = url
        self._options = options
        self._retry = retry
        self._counter = counter or RetryCounter()

    @property
    def retries(self) -> int:
        """Requests that had to be made again, of this store and its children together."""
        return self._counter.total

    def child(self, name: str) -> Store:
        """The store of a folder below this one; counts its retries together with it."""
        url = f"{self.url.rstrip('/')}/{check_path(name)}"
        return type(self)(url, self._options, self._retry, self._counter)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url, self._options, self._retry)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _run(self, verb: str, path: str, action: Callable[[], T]) -> T:
        return self._retry.call(f"{verb} {self.url}/{path}".rstrip("/"), action, self._counter)

    def list(self, prefix: str = "") -> Names:
        """Paths of all files in the folder `prefix`, recursive, sorted; [] if there is none."""
        return [entry.path for entry in self.scan(prefix)]

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The whole file."""

    def read_bare(self, path: str) -> bytes:
        """The whole file, not held against storage's own checksum, for one who knows its digest."""
        return self.read(path)

    @abstractmethod
    def read_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`; fewer where the file ends before."""

    def digest(self, path: str) -> tuple[int, str]:
        """Size in bytes and xxh3-128, 32 hexadecimal digits, of the whole file."""
        data = self.read(path)
        return len(data), xxhash.xxh3_128_hexdigest(data)

    @abstractmethod
    def size(self, path: str) -> int:
        """Size in bytes."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether a file (not a folder) of this name stands."""

    @abstractmethod
    def scan(self, prefix: str = "") -> Entries:
        """Like `list`, with sizes and times; names of half-written temporary files included."""

    @abstractmethod
    def folders(self) -> Names:
        """Names of the folders directly below, sorted, without descending into them."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Put the file, over an older one if need be; a reader sees the old or the new, whole."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Put the file unless the name is taken: True for the one writer that made it.

        On an object store an answer can get lost, so there a file of the very same bytes counts
        as one's own: writers that must not be confused put something of their own into it.
        """

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove the file; nothing happens if it does not exist."""

    @abstractmethod
    def local_path(self, path: str) -> Path | None:
        """Where the file lies on this machine's file system, None on an object store."""

    @abstractmethod
    def check_exclusive(self) -> None:
        """Raise StoreError, with the reason, if `create` cannot be trusted on this storage."""


class LocalStore(Store):
    """A folder of this machine's file system."""

    def _full(self, path: str) -> str:
        return os.path.join(self.url, check_path(path))

    def read(self, path: str) -> bytes:
        return self._run("read", path, Path(self._full(path)).read_bytes)

    def read_range(self, path: str, start: int, length: int) -> bytes:
        def read() -> bytes:
            with open(self._full(path), "rb") as file:
                file.seek(start)
                return file.read(length)

        return self._run("read", path, read)

    def digest(self, path: str) -> tuple[int, str]:
        def read() -> tuple[int, str]:
            # By pieces into the same memory: fresh memory for whole files costs more than hashing.
            total, hasher, piece = 0, xxhash.xxh3_128(), memoryview(bytearray(_PIECE_BYTES))
            with open(self._full(path), "rb", buffering=0) as file:
                while count := file.readinto(piece):
                    hasher.update(piece[:count])
                    total += count
            return total, hasher.hexdigest()

        return self._run("read", path, read)

    def size(self, path: str) -> int:
        return self._run("stat", path, lambda: os.stat(self._full(path)).st_size)

    def exists(self, path: str) -> bool:
        def look() -> bool:
            # Not os.path.isfile: to it a file that cannot be looked at is a file that is not there.
            try:
                return S_ISREG(os.stat(self._full(path)).st_mode)
            except (FileNotFoundError, NotADirectoryError):
                return False

        return self._run("stat", path, look)

    def scan(self, prefix: str = "") -> Entries:
        base = self._full(prefix) if prefix else self.url

        def walk() -> Entries:
            found = []
            for folder, _, names in os.walk(base, onerror=_raise_unless_absent):
                for name in names:
                    full = os.path.join(folder, name)
                    try:
                        stat = os.stat(full)
                    except FileNotFoundError:
                        continue  # removed, or renamed by its writer, since the listing
                    path = os.path.relpath(full, self.url)
                    found.append(Entry(path, stat.st_size, stat.st_mtime))
            return sorted(found, key=lambda entry: entry.path)

        return self._run("list", prefix, walk)

    def folders(self) -> Names:
        def walk() -> Names:
            try:
                with os.scandir(self.url) as entries:
                    return sorted(entry.name for entry in entries if entry.is_dir())
            except FileNotFoundError:
                return []

        return self._run("list", "", walk)

    def write(self, path: str, data: bytes) -> None:
        full = self._full(path)

        def put() -> None:
            temporary = _temporary(full, data)
            made = os.stat(temporary)
            try:
                os.replace(temporary, full)
            except FileNotFoundError:
                # On NFS the answer may get lost, and who asks again finds it renamed already.
                if not os.path.samestat(made, os.stat(full)):
                    raise
            _sync_folder(full)

        self._run("write", path, put)

    def create(self, path: str, data: bytes) -> bool:
        full = self._full(path)
        # One file for all tries: by it a later one knows what an earlier one has made.
        temporary = self._run("create", path, lambda: _temporary(full, data))

        def put() -> bool:
            # A hard link fails if the name is taken, and the bytes are whole when it appears;
            # rename would replace, and O_EXCL would show a file that is still being written.
            try:
                os.link(temporary, full)
            except FileExistsError:
                # On NFS the answer to a link that was made may get lost, and who asks again finds
                # the name taken, by this very file.
                if os.stat(temporary).st_nlink == 1:
                    return False
            _sync_folder(full)
            return True

        try:
            return self._run("create", path, put)
        finally:
            with suppress(OSError):  # it harms nobody, and what was made stays made
                os.unlink(temporary)

    def delete(self, path: str) -> None:
        self._run("delete", path, lambda: Path(self._full(path)).unlink(missing_ok=True))

    def local_path(self, path: str) -> Path | None:
        return Path(self._full(path))

    def check_exclusive(self) -> None:
        probe = f".probe-{secrets.token_hex(8)}"
        try:
            self.create(probe, b"")
        except StoreError as error:
            raise StoreError(
                f"{self.url}: a file cannot be created exclusively here, which takes hard links: "
                f"{error}; use another file system, or write elsewhere and copy the dataset here"
            ) from error
        self.delete(probe)


def _raise_unless_absent(error: OSError) -> None:
    """Without it os.walk leaves out a folder that cannot be listed, as if nothing stood in it."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _temporary(full: str, data: bytes) -> str:
    """Write the bytes, synced, to a fresh name beside `full`; a killed writer leaves only this."""
    folder, name = os.path.split(full)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return temporary


def _sync_folder(full: str) -> None:
    """Make the name itself durable, where the file system lets a folder be synced."""
    handle = os.open(os.path.dirname(full), os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def open_store(url: str, *, retry: RetryPolicy | None = None, **storage_options: Any) -> Store:
    """The store of a folder: a plain path, file:///path, s3://bucket/path, gs:// or memory://.

    storage_options: passed to fsspec's file system (key, secret, endpoint_url, ...); without them
    the usual chain of environment, profile and instance role applies. InvalidInputError for a
    scheme that is not known.
    """
    policy = retry or RetryPolicy()
    scheme, separator, _ = url.partition("://")
    if not separator or scheme == "file":
        if storage_options:
            raise InvalidInputError(
                f"{url!r} is a local folder and takes no storage options, got "
                f"{sorted(storage_options)}: leave them out or name an object store"
            )
        path = _path_of(url) if separator else url
        if not path or "\0" in path:
            raise InvalidInputError(f"{url!r} names no folder: give a path or a URL")
        return LocalStore(os.path.abspath(os.path.expanduser(path)), {}, policy)
    from services.shards.objectstore import SCHEMES, ObjectStore

    if scheme not in SCHEMES:
        raise InvalidInputError(
            f"scheme {scheme!r} of {url!r} is not known; valid are a plain path, file://, "
            + ", ".join(f"{name}://" for name in SCHEMES)
        )
    return ObjectStore(url, storage_options, policy)


def _path_of(url: str) -> str:
    """The path of a file:// URL; any sign may stand in it, `#` and `?` as they are or as %NN."""
    host, slash, path = url.removeprefix("file://").partition("/")
    if host not in ("", "localhost"):
        raise InvalidInputError(
            f"{url!r} names the machine {host!r}, of which nothing can be read here: its rest names"
            " another folder; write file:///PATH with three slashes, or a plain path"
        )
    return unquote(slash + path)


def absolute_url(url: str) -> str:
    """A plain path made absolute, so that it means the same in every process; URLs as they are."""
    return url if not url or "://" in url else os.path.abspath(os.path.expanduser(url))


def read_url(url: str, **storage_options: Any) -> bytes:
    """The whole file behind a path or URL. NotFoundError if there is none."""
    folder, separator, name = url.rpartition("/")
    if not name:
        raise InvalidInputError(f"{url!r} names a folder, where a file is needed")
    return open_store((folder or "/") if separator else ".", **storage_options).read(name)


def read_as(url: str, parse: Callable[[bytes], T]) -> T:
    """What `parse` makes of the whole file behind a path or URL; what it refuses names the file.

    Raises: as `read_url`; FormatError.
    """
    data = read_url(url)
    try:
        return parse(data)
    except FormatError as error:
        raise FormatError(f"{url}: {error}") from error


def refuse_missing(store: Store, holds: str) -> None:
    """Raise NotFoundError for a local folder that is not there: a typing error rather than an empty
    one. holds: what it was expected to hold."""
    if isinstance(store, LocalStore) and not os.path.isdir(store.url or "/"):
        raise NotFoundError(
            f"there is no folder {store.url}: give the folder, or the URL, that holds {holds}"
        )
