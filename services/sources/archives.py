"""Archives that hold many pictures each: which there are, and in which jobs they are read."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

from services.errors import InvalidInputError
from services.folders import walk
from services.shards.store import Entry, LocalStore, Store, refuse_missing
from services.sources.sample import Fault, Found, Sample, Unit, check_key

JOB_BYTES = 1 << 29
"""Archives are read together, in their order, until they have this size: a job's last shard is
shorter than the others, and jobs should neither be many nor few. It depends on the files alone,
so the same files become the same shards on any cluster."""


class ArchiveSource(ABC):
    """Files below a folder or URL; a picture's key is FILE/NAME, without the file's ending.

    See `PictureSource`. A file that is damaged is a `Fault`, after what could be read of it; a
    storage that does not answer is a StoreError.
    Raises: NotFoundError for no folder; InvalidInputError where no file has one of the endings, or
    two differ in it alone.
    """

    kind: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]
    classes: tuple[str, ...] = ()
    mask_classes = None
    unit: Unit = "bytes"

    def __init__(self, store: Store, captions: bool, job_bytes: int = JOB_BYTES) -> None:
        self._store, self.captions = store, captions
        entries = [entry for entry in _listed(store) if self.holds(entry.path)]
        if not entries:
            raise InvalidInputError(
                f"{store.url or '/'} holds no file {', '.join(self.endings)}: there is nothing to "
                "ingest; give the folder that holds them"
            )
        stems: dict[str, str] = {}
        for path in (entry.path for entry in entries):
            other = stems.setdefault(self._stem(path), path)
            if other != path:
                raise InvalidInputError(
                    f"{store.url or '/'} holds {other} and {path}, whose pictures would have the "
                    "same keys: nothing was read; rename one of them"
                )
        self.files = len(entries)
        self._jobs = list(_packed(entries, job_bytes))
        self.sizes = [sum(entry.bytes for entry in job) for job in self._jobs]

    @classmethod
    def holds(cls, path: str) -> bool:
        """Whether a file of that name is one of these archives."""
        return path.endswith(cls.endings) and not os.path.basename(path).startswith((".", "_"))

    def read(self, job: int) -> Iterator[Found]:
        for entry in self._jobs[job]:
            stem = self._stem(entry.path)
            seen: set[str] = set()
            for found in self.pictures(entry):
                if not isinstance(found, Sample):
                    yield found
                    continue
                key = f"{stem}/{found.key}"
                wrong = check_key(key) or (
                    "another picture of the file has the same name; rename it"
                    if key in seen
                    else None
                )
                if wrong is not None:
                    yield Fault(key, f"{self.place(entry)}: {found.key[:200]!r}: {wrong}")
                    continue
                seen.add(key)
                yield Sample(key, found.picture, caption=found.caption)

    def place(self, entry: Entry) -> str:
        """Where an archive stands, for messages."""
        return f"{self._store.url}/{entry.path}"

    def _stem(self, path: str) -> str:
        ending = max((one for one in self.endings if path.endswith(one)), key=len)
        return path.removesuffix(ending)

    @abstractmethod
    def pictures(self, entry: Entry) -> Iterator[Found]:
        """What a file holds, in its order; keys are names within the file."""


def _listed(store: Store) -> list[Entry]:
    """All files, by path. Links to folders are followed, as where pictures are files themselves;
    `Store.scan` does not: what is tidied up by it must stand in the folder.
    """
    if not isinstance(store, LocalStore):
        return store.scan()
    refuse_missing(store, "archives of pictures")
    found = []
    for place, _, names in walk(store.url):
        for full in (os.path.join(place, name) for name in names):
            with contextlib.suppress(FileNotFoundError):  # a link to nothing, or removed since
                stat = os.stat(full)
                found.append(Entry(os.path.relpath(full, store.url), stat.st_size, stat.st_mtime))
    return sorted(found, key=lambda entry: entry.path)


def _packed(entries: Sequence[Entry], job_bytes: int) -> Iterator[list[Entry]]:
    job, size = list[Entry](), 0
    for entry in entries:
        if job and size + entry.bytes > job_bytes:
            yield job
            job, size = [], 0
        job.append(entry)
        size += entry.bytes
    yield job
