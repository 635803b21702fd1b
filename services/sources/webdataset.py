"""Tars of image-text samples (WebDataset): `NAME.jpg`, `NAME.txt`, `NAME.json`, one after another.

Read as a stream, a member at a time (`tar`); nothing is ever unpacked to disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from services.errors import SeitError, StoreError
from services.pictures import EXTENSIONS
from services.shards.store import Entry, Store
from services.sources.archives import JOB_BYTES, ArchiveSource
from services.sources.fields import MAX_TEXT_BYTES, Fields
from services.sources.sample import (
    MAX_PICTURE_BYTES,
    Absent,
    Fault,
    Found,
    Sample,
    clean_key,
    open_file,
    too_large,
)
from services.sources.tar import DAMAGE, Member, members

_PICTURES = frozenset(extension.removeprefix(".") for extension in EXTENSIONS)


@dataclass
class _Group:
    """Members that share a name, as far as they were read."""

    key: str
    picture: bytes | None = None
    texts: dict[str, bytes] = field(default_factory=dict)
    fault: str | None = None


class WebDatasetSource(ArchiveSource):
    """Tars, also compressed ones; a sample is what follows one another under one name.

    A name ends at the first dot of the file's name, as WebDataset has it. Of several pictures of
    a sample the first is taken. Files that are no picture (and not the caption), or whose names
    begin with a dot, are passed over.
    """

    kind = "webdataset"
    endings = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

    def __init__(self, store: Store, captions: str = "", job_bytes: int = JOB_BYTES) -> None:
        super().__init__(store, bool(captions), job_bytes)
        self._fields = Fields(captions)

    def pictures(self, entry: Entry) -> Iterator[Found]:
        group: _Group | None = None
        try:
            with open_file(self._store, entry.path, entry.bytes) as file:
                for member in members(file):
                    if isinstance(member, str):
                        yield Fault(entry.path, f"{self.place(entry)}: {member}", file=True)
                        continue
                    *folders, file_name = member.name.split("/")
                    name, _, extension = file_name.partition(".")
                    if not name:
                        continue  # hidden, as what macOS puts beside each file
                    parts = (part for part in (*folders, name) if part not in ("", "."))
                    key = clean_key("/".join(parts))
                    if group is None or group.key != key:
                        if group is not None:
                            yield from self._sample(entry, group)
                        group = _Group(key)
                    self._take(group, member, extension.lower())
        except StoreError:
            raise  # the storage, not the file: what it holds is not lost
        except (*DAMAGE, SeitError) as error:
            yield Fault(
                entry.path,
                f"{self.place(entry)}: cannot be read to its end ({type(error).__name__}: {error});"
                " what came before was taken; fetch it again",
                file=True,
            )
        if group is not None:
            yield from self._sample(entry, group)

    def _take(self, group: _Group, member: Member, extension: str) -> None:
        """Read a member into its sample, if it is wanted."""
        is_picture = extension.rpartition(".")[2] in _PICTURES and group.picture is None
        if not is_picture:
            if extension in self._fields.extensions and member.size <= MAX_TEXT_BYTES:
                group.texts[extension] = member.read()
            return
        if not member.whole:
            group.fault = "is a link or a sparse file, not the picture itself; write it whole"
        elif member.size > MAX_PICTURE_BYTES:
            group.fault = too_large(member.name, member.size)
        else:
            group.fault = f"its {member.size} bytes are cut off"
            group.picture, group.fault = member.read(), None

    def _sample(self, entry: Entry, group: _Group) -> Iterator[Found]:
        if group.picture is not None:
            yield Sample(group.key, group.picture, caption=self._fields.caption(group.texts))
        elif group.fault is not None:
            path = f"{self._stem(entry.path)}/{group.key}"
            yield Fault(path, f"{self.place(entry)}: {group.key[:200]!r}: {group.fault}")
        else:
            yield Absent(group.key)
