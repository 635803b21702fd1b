"""Stores behind fsspec: s3:// (s3fs), gs:// (gcsfs) and memory://."""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import fsspec
from fsspec.asyn import sync

from services.errors import InvalidInputError, NotFoundError, StoreError
from services.shards.parts import LARGE_BYTES, put_parts
from services.shards.retry import EXISTS_STATUS, RetryCounter, RetryPolicy, http_status
from services.shards.store import Entries, Entry, Names, Store, check_path

logger = logging.getLogger(__name__)

SCHEMES = ("s3", "gs", "memory")
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs, the extra `gcs` of seitpp"}
_CONDITIONS = {"s3": "`If-None-Match: *`", "gs": "`ifGenerationMatch=0`"}
_RIVALS, _RIVAL_ROUNDS = 8, 3
_EXCLUSIVE: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
"""Buckets that this process has found to hold the condition, by file system."""
_MEMORY_LOCK = threading.Lock()  # fsspec's memory files look first and write after


class ObjectStore(Store):
    """A prefix of a bucket, or of fsspec's files in memory.

    The libraries' own retries are switched off, so that `Store.retries` counts all there are (but
    those of aiohttp on a kept-alive connection). Listings are never cached: others write too.
    """

    def __init__(
        self,
        url: str,
        options: dict[str, Any],
        retry: RetryPolicy,
        counter: RetryCounter | None = None,
        files: Any = None,
    ) -> None:
        self._scheme, _, rest = url.partition("://")
        self._base = rest.strip("/")
        super().__init__(f"{self._scheme}://{self._base}", options, retry, counter)
        if self._scheme != "memory" and (not self._base or rest.startswith("/")):
            raise InvalidInputError(f"{url!r} names no bucket: write {self._scheme}://BUCKET/PATH")
        if self._base:
            check_path(self._base)
        self._files = files or _filesystem(self._scheme, options)

    def child(self, name: str) -> ObjectStore:
        url = f"{self.url.rstrip('/')}/{check_path(name)}"
        return ObjectStore(url, self._options, self._retry, self._counter, self._files)

    def _full(self, path: str) -> str:
        return "/".join(part for part in (self._base, check_path(path)) if part)

    def _read(self, path: str, **limits: int) -> bytes:
        if self._scheme == "s3":
            limits["max_concurrency"] = 1  # one GET; s3fs would ask for the size first

        def cat() -> bytes:
            data: bytes = self._files.cat_file(self._full(path), **limits)
            return data

        return self._run("read", path, cat)

    def read_bare(self, path: str) -> bytes:
        return self._read(path)

    def read(self, path: str) -> bytes:
        """The whole file. Its bytes are held against the checksum that S3 may have of it."""
        if self._scheme != "s3":
            return self._read(path)
        bucket, _, key = self._full(path).partition("/")
        get = partial(_get_validated, self._files, bucket, key)
        return self._run("read", path, lambda: bytes(sync(self._files.loop, get)))

    def read_range(self, path: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""
        try:
            return self._read(path, start=start, end=start + length)
        except StoreError as error:
            if http_status(error) == 416:  # the range begins behind the file's end
                return b""
            raise

    def _info(self, path: str) -> dict[str, Any]:
        info: dict[str, Any] = self._run("stat", path, lambda: self._files.info(self._full(path)))
        if info["type"] != "file":
            raise NotFoundError(f"stat {self.url}/{path}: this is a folder, not a file")
        return info

    def size(self, path: str) -> int:
        return int(self._info(path)["size"])

    def exists(self, path: str) -> bool:
        try:
            self._info(path)
        except NotFoundError:
            return False
        return True

    def scan(self, prefix: str = "") -> Entries:
        base = self._full(prefix) if prefix else self._base

        # A prefix keeps s3fs from two more requests, that the folder is no file, when it is empty.
        place, key = base, ""
        if self._scheme == "s3":
            place, _, key = base.partition("/")

        def find() -> dict[str, dict[str, Any]]:
            found: dict[str, dict[str, Any]] = self._files.find(
                place, detail=True, **({"prefix": f"{key}/"} if key else {})
            )
            return found

        cut = len(self._base) + 1 if self._base else 0
        try:
            found = self._run("list", prefix, find)
        except NotFoundError:
            return []
        entries = [
            Entry(name.lstrip("/")[cut:], int(info["size"]), _modified(info))
            for name, info in found.items()
            # Consoles and copying tools put an empty object `a/` where they make a folder.
            if info["type"] == "file" and name.lstrip("/") != base and not name.endswith("/")
        ]
        return sorted(entries, key=lambda entry: entry.path)

    def folders(self) -> Names:
        def ls() -> Names:
            infos = self._files.ls(self._base, detail=True)
            found = (info["name"] for info in infos if info["type"] == "directory")
            return sorted(name.rstrip("/").rpartition("/")[2] for name in found)

        try:
            return self._run("list", "", ls)
        except NotFoundError:
            return []

    def write(self, path: str, data: bytes) -> None:
        if self._in_parts(data):
            self._put_parts("write", path, data)
        else:
            self._run("write", path, lambda: self._files.pipe_file(self._full(path), data))

    def _in_parts(self, data: bytes) -> bool:
        return self._scheme == "s3" and len(data) >= LARGE_BYTES

    def _put_parts(self, verb: str, path: str, data: bytes, **condition: str) -> None:
        bucket, _, key = self._full(path).partition("/")
        call = partial(self._files.call_s3, Bucket=bucket, Key=key)
        put_parts(call, partial(self._run, verb, path), data, condition)

    def create(self, path: str, data: bytes) -> bool:
        if self._run("create", path, lambda: self._put_new(path, data)):
            return True
        # The answer to a first try may have been lost, and aiohttp sends a PUT again by itself
        # when a kept-alive connection breaks: then the object that stands is our own.
        return self.read(path) == data

    def _put_new(self, path: str, data: bytes) -> bool:
        try:
            if self._in_parts(data):
                self._put_parts("create", path, data, IfNoneMatch="*")
                return True
            with _MEMORY_LOCK if self._scheme == "memory" else contextlib.nullcontext():
                self._files.pipe_file(self._full(path), data, mode="create")
        except FileExistsError:
            return False
        except Exception as error:
            if http_status(error) == EXISTS_STATUS:
                return False
            raise
        return True

    def delete(self, path: str) -> None:
        def remove() -> None:
            try:
                self._files.rm_file(self._full(path))
            except FileNotFoundError:
                return

        self._run("delete", path, remove)

    def local_path(self, path: str) -> Path | None:
        check_path(path)
        return None

    def check_exclusive(self) -> None:
        bucket = self._base.partition("/")[0]
        known = _EXCLUSIVE.setdefault(self._files, set())
        if bucket in known:
            return
        condition = _CONDITIONS.get(self._scheme, "exclusive create")
        try:
            failure = self._try_exclusive()
        except StoreError as error:
            raise StoreError(
                f"{self.url} cannot be written to by {condition}, by which a version is "
                f"committed: {error}"
            ) from error
        if failure:
            raise StoreError(
                f"{self.url}: the server ignores {condition} {failure}, so two writers could "
                "overwrite each other's version; use a server with atomic conditional writes (AWS "
                "S3, Google Cloud Storage, MinIO), or write to a folder and copy the dataset here"
            )
        known.add(bucket)

    def _try_exclusive(self) -> str:
        """How a second object of one name came to replace the first; "" if none did."""
        probe = f".probe-{secrets.token_hex(8)}"
        try:
            if not self.create(probe, b"first") or self.create(probe, b"second"):
                return "(it let a second object of the same name replace the first)"
        finally:
            self._remove_probe(probe)
        # Some servers look whether there is an object, and write later: OpenStack Swift does.
        for _ in range(_RIVAL_ROUNDS):
            probe = f".probe-{secrets.token_hex(8)}"
            try:
                with ThreadPoolExecutor(_RIVALS) as pool:
                    rivals = [b"%d" % number for number in range(_RIVALS)]
                    made = sum(pool.map(partial(self.create, probe), rivals))
            finally:
                self._remove_probe(probe)
            if made != 1:
                return f"in requests that meet (it made {made} objects of the same name at once)"
        return ""

    def _remove_probe(self, probe: str) -> None:
        try:
            self.delete(probe)
        except StoreError:
            logger.warning("could not remove the probe %s/%s", self.url, probe)


def _filesystem(scheme: str, options: dict[str, Any]) -> Any:
    """fsspec's file system for the scheme, with its own retries and caches switched off."""
    if scheme != "memory":
        options = {"use_listings_cache": False, **options}
    if scheme == "s3":
        config = {
            "retries": {"total_max_attempts": 1},
            # A second checksum of shards, which are held against the manifest's digests, takes a
            # sixth of a cold stream's processor time. `read` asks for it.
            "response_checksum_validation": "when_required",
        }
        options["config_kwargs"] = {**config, **options.get("config_kwargs", {})}
    try:
        if scheme == "gs":
            from services.shards.gcs import PlainGcs

            return PlainGcs(**options)
        files = fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise InvalidInputError(
            f"{scheme}:// needs a package that is not installed ({error}): pip install "
            f"{_PACKAGES[scheme]}"
        ) from error
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"storage options of {scheme}:// are not valid: {error}") from error
    if scheme == "s3":
        files.retries = 1
    return files


async def _get_validated(files: Any, bucket: str, key: str) -> bytes:
    """A GET that s3fs's `cat_file` has no word for: with the object's checksum."""
    answer = await files._call_s3("get_object", Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    async with answer["Body"] as body:
        data: bytes = await body.read()
    return data


def _modified(info: dict[str, Any]) -> float:
    """Time of the last change in Unix seconds; each library has its own name and type for it."""
    for name in ("LastModified", "mtime", "updated", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str) and value:
            return datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()
    return 0.0
