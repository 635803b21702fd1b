"""Members of a tar as a stream: any of its dialects, compressed or not, damaged or not.

The standard library parses the headers. What it does with a damaged one, to take it for the
archive's end and say nothing, would lose pictures in silence, so the walk from header to header
stands here: it says what is damaged and searches on, block by block, for the next header. Nothing
that an archive says makes it use more memory than a header's limit, and nothing is unpacked.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

DAMAGE = (OSError, EOFError, ValueError, OverflowError, zlib.error, lzma.LZMAError)
"""What reading a damaged archive raises."""

_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
_PIECE_BYTES = 1 << 20
_MAX_HEADER_BYTES = 1 << 20  # of a long name, or of a member's extended attributes
_NO_CONTENT = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
_PACKED: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file, mode="rb")),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\x00", lzma.LZMAFile),
)


class Member(NamedTuple):
    """name: as it stands, bytes that are no UTF-8 escaped. size: bytes of its content.

    whole: whether the content is the file's, which it is not of links and sparse files.
    read: its content; once at most, and before the next member is asked for. EOFError if it is cut.
    """

    name: str
    size: int
    whole: bool
    read: Callable[[], bytes]


def members(file: IO[bytes]) -> Iterator[Member | str]:
    """Members but for folders, in their order; a string says what is damaged at that place.

    Zeros are an archive's end, and as well a hole that a download left, or the seam of two
    archives: what stands behind them is read.
    Raises one of `DAMAGE` where nothing more can be read.
    """
    stream = _unpacked(file)
    extended: dict[str, str] = {}
    lost = zeros = 0  # bytes without a header since the last member, and zeros behind those
    while len(block := stream.read(_BLOCK)) == _BLOCK:
        if block == _ZEROS:
            zeros += _BLOCK
            continue
        lost, zeros = lost + zeros, 0
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            lost += _BLOCK
            extended = {}
            continue
        if lost:
            yield f"{lost} bytes before {info.name!r} hold no member that can be read"
            lost = 0
        if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            extended |= _extended(info, _header(stream, info))
            continue
        if info.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            _header(stream, info)
            continue
        sparse = info.type == tarfile.GNUTYPE_SPARSE
        more = sparse and block[482]
        while more:
            more = _exactly(stream, _BLOCK)[504]
        sparse |= any(key.startswith("GNU.sparse.") for key in extended)
        size = 0 if info.type in _NO_CONTENT else int(extended.get("size", info.size))
        content = _Content(stream, size)
        if info.type != tarfile.DIRTYPE:
            name = extended.get("path", info.name)
            yield Member(name, size, info.isreg() and not sparse, content.read)
        content.skip()
        extended = {}
    if lost:
        yield f"its last {lost} bytes hold no member that can be read"
    elif zeros:
        return
    elif not block:
        yield "it ends without the mark of an end: it may have been cut off"
    else:
        raise EOFError("it ends within a header")


def _unpacked(file: IO[bytes]) -> Any:
    start = file.read(8)
    file.seek(0)
    for mark, opened in _PACKED:
        if start.startswith(mark):
            return opened(file)
    return file


class _Content:
    """The bytes of a member, which the stream gives once."""

    def __init__(self, stream: Any, size: int) -> None:
        if size < 0:
            raise ValueError(f"a member of {size} bytes")
        self._stream, self._size = stream, size
        self._left = size + -size % _BLOCK

    def read(self) -> bytes:
        self._left -= self._size
        return _exactly(self._stream, self._size)

    def skip(self) -> None:
        """Go to the next header; EOFError where the archive ends before."""
        while self._left:
            self._left -= len(_exactly(self._stream, min(self._left, _PIECE_BYTES)))


def _exactly(stream: Any, size: int) -> bytes:
    data: bytes = stream.read(size)
    if len(data) < size:
        raise EOFError(f"it ends after {len(data)} of {size} bytes")
    return data


def _header(stream: Any, info: tarfile.TarInfo) -> bytes:
    if not 0 <= info.size <= _MAX_HEADER_BYTES:
        raise ValueError(f"a header of {info.size} bytes, more than {_MAX_HEADER_BYTES}")
    data = _exactly(stream, info.size + -info.size % _BLOCK)
    return data[: info.size]


def _extended(info: tarfile.TarInfo, data: bytes) -> dict[str, str]:
    """What a header in front of a member says of it: "path", "size" and others."""
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found, at = {}, 0
    while at < len(data) and data[at : at + 1] != b"\0":
        length, space, _ = data[at : at + 24].partition(b" ")
        size = int(length)
        key, equals, value = data[at + len(length) + 1 : at + size].partition(b"=")
        if not space or not equals or size <= len(length):
            raise ValueError("an extended header that cannot be read")
        found[key.decode()] = value.rstrip(b"\n").decode("utf-8", "surrogateescape")
        at += size
    return found
