"""Parquet files with pictures in a column: what img2dataset and others make of lists of URLs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from services.errors import InvalidInputError, SeitError, StoreError
from services.shards.store import Entry, Store
from services.sources.archives import JOB_BYTES, ArchiveSource
from services.sources.sample import (
    MAX_PICTURE_BYTES,
    Absent,
    Fault,
    Found,
    Sample,
    clean_caption,
    clean_key,
    open_file,
    too_large,
)

_PICTURES = ("jpg", "jpeg", "png", "webp", "image", "image_bytes", "img", "bytes")
_KEY = "key"
_ROWS = 64  # that are in memory at a time
_BUFFER_BYTES = 1 << 20
_DAMAGE = (pa.ArrowException, OSError, EOFError, ValueError, MemoryError)


class ParquetSource(ArchiveSource):
    """A row a picture; a row whose picture is null was never fetched.

    The picture is a column of bytes, or of structs with `bytes` as Hugging Face's datasets have it:
    `picture`, or the first of jpg, jpeg, png, webp, image, image_bytes, img, bytes that there is.
    The key is the column `key` where there is one and says something, else the number of the row.
    """

    kind = "parquet"
    endings = (".parquet",)

    def __init__(
        self,
        store: Store,
        captions: str = "",
        picture: str = "",
        job_bytes: int = JOB_BYTES,
    ) -> None:
        super().__init__(store, bool(captions), job_bytes)
        self._caption, self._picture = captions, picture
        self._check_first(self._jobs[0][0])

    def _check_first(self, entry: Entry) -> None:
        """Refuse names that the first file does not have before anything starts."""
        try:
            with open_file(self._store, entry.path, entry.bytes) as file:
                self._columns(pq.ParquetFile(file).schema_arrow, self.place(entry))
        except SeitError:
            raise
        except _DAMAGE:
            return  # damaged: a fault like any other, when it is read

    def pictures(self, entry: Entry) -> Iterator[Found]:
        try:
            with open_file(self._store, entry.path, entry.bytes) as source:
                file = pq.ParquetFile(
                    source,
                    buffer_size=_BUFFER_BYTES,
                    pre_buffer=False,
                    page_checksum_verification=True,
                )
                names = self._columns(file.schema_arrow, self.place(entry))
                first = 0
                for group in range(file.num_row_groups):
                    yield from self._group(entry, file, group, names, first)
                    first += file.metadata.row_group(group).num_rows
        except StoreError:
            raise  # the storage, not the file: what it holds is not lost
        except (*_DAMAGE, SeitError) as error:
            yield self._damaged(entry, "cannot be read", error)

    def _group(
        self, entry: Entry, file: pq.ParquetFile, group: int, names: dict[str, str], first: int
    ) -> Iterator[Found]:
        """The rows of a row group; `first`: number of the first one in the file."""
        at = first
        try:
            columns = sorted(set(names.values()))
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=columns):
                for row in batch.to_pylist():
                    yield self._row(entry, row, names, at)
                    at += 1
        except _DAMAGE as error:
            rows = file.metadata.row_group(group).num_rows
            what = f"{first + rows - at} of the {rows} rows of row group {group} cannot be read"
            yield self._damaged(entry, what, error)

    def _row(self, entry: Entry, row: dict[str, Any], names: dict[str, str], at: int) -> Found:
        said = row[names["key"]] if "key" in names else None
        if isinstance(said, bytes):
            said = said.decode("utf-8", "backslashreplace")
        key = f"{at:08d}" if said is None else clean_key(str(said))
        picture = row[names["picture"]]
        if isinstance(picture, dict):
            picture = picture.get("bytes")
        if picture is None:
            return Absent(key)
        if len(picture) > MAX_PICTURE_BYTES:
            name = f"{self.place(entry)}: row {at}"
            return Fault(f"{self._stem(entry.path)}/{key}", too_large(name, len(picture)))
        caption = row[names["caption"]] if "caption" in names else None
        return Sample(key, picture, caption=clean_caption(caption) if caption else "")

    def _damaged(self, entry: Entry, what: str, error: Exception) -> Fault:
        reason = " ".join(str(error).split())[:300]
        return Fault(
            entry.path,
            f"{self.place(entry)}: {what} ({type(error).__name__}: {reason}); fetch it again",
            file=True,
        )

    def _columns(self, schema: pa.Schema, name: str) -> dict[str, str]:
        """Names of the columns for picture, key and caption; InvalidInputError where they lack."""
        wanted = (self._picture,) if self._picture else _PICTURES
        named = (*wanted, _KEY, self._caption)
        twice = [one for one in named if schema.names.count(one) > 1]
        if twice:
            raise InvalidInputError(
                f"{name}: {schema.names.count(twice[0])} columns are called {twice[0]!r}: it is "
                "not clear which is meant; rename the others"
            )
        found = {one: schema.field(one).type for one in wanted if one in schema.names}
        held = [one for one, kind in found.items() if _holds_bytes(kind)]
        if not held:
            raise InvalidInputError(
                f"{name}: no column of pictures ({', '.join(wanted)}), as bytes or as a struct"
                f" with bytes; it has {', '.join(schema.names)}: name one as --picture. A list of"
                " URLs holds no pictures: fetch them first"
            )
        names = {"picture": held[0]}
        if _KEY in schema.names:
            names["key"] = _KEY
        if self._caption:
            if self._caption not in schema.names or not _holds_text(
                schema.field(self._caption).type
            ):
                raise InvalidInputError(
                    f"{name}: no column {self._caption!r} of text for captions; it has"
                    f" {', '.join(schema.names)}: name one as --captions"
                )
            names["caption"] = self._caption
        return names


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        inner = [one.type for one in kind if one.name == "bytes"]
        return len(inner) == 1 and _is_binary(inner[0])
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_text(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
