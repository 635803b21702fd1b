"""Reading tars: all dialects, and what damage costs."""

from __future__ import annotations

import contextlib
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.sources.tar import DAMAGE, Member, members
from tests.sources.archived import write_tar

LONG = "folder/" + "n" * 300 + ".jpg"


def read(data: bytes) -> tuple[list[tuple[str, bytes]], list[str]]:
    """(name and content of each member, what was said to be damaged)."""
    found, said = [], []
    for one in members(io.BytesIO(data)):
        if isinstance(one, Member):
            found.append((one.name, one.read()))
        else:
            said.append(one)
    return found, said


def listed(count: int = 6, size: int = 1500) -> list[tuple[str, bytes]]:
    return [(f"{number}.jpg", bytes([number]) * (size + number)) for number in range(count)]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_and_compression(tmp_path: Path, mode: str, form: int) -> None:
    wanted = [*listed(), ("empty.txt", b"")]
    if form != tarfile.USTAR_FORMAT:
        wanted += [(LONG, b"long"), ("gr\xfcn/\u732b.jpg", b"cat")]
    path = write_tar(tmp_path / "x.tar", wanted, mode, form)
    assert read(path.read_bytes()) == (wanted, [])


def test_what_is_not_read_is_passed_over(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", listed())
    names = [one.name for one in members(io.BytesIO(path.read_bytes())) if isinstance(one, Member)]
    assert names == [name for name, _ in listed()]


def test_links_are_not_the_file_itself_and_folders_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        whole = tarfile.TarInfo("whole.jpg")
        whole.size = 3
        tar.addfile(whole, io.BytesIO(b"abc"))
    found = [one for one in members(io.BytesIO(path.read_bytes())) if isinstance(one, Member)]
    assert [(one.name, one.size, one.whole) for one in found] == [
        ("link.jpg", 0, False),
        ("whole.jpg", 3, True),
    ]


def test_a_damaged_header_costs_its_member_alone_and_is_named(tmp_path: Path) -> None:
    """`tarfile` itself ends there without a word: that is why the walk is ours."""
    form = tarfile.USTAR_FORMAT
    data = bytearray(write_tar(tmp_path / "x.tar", listed(), form=form).read_bytes())
    header = data.index(b"2.jpg\0")
    data[header] ^= 0x55
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        assert len(tar.getnames()) == 2
    found, said = read(bytes(data))
    assert [name for name, _ in found] == ["0.jpg", "1.jpg", "3.jpg", "4.jpg", "5.jpg"]
    assert said == ["2048 bytes before '3.jpg' hold no member that can be read"]


def test_a_cut_archive_gives_what_is_whole_and_says_so(tmp_path: Path) -> None:
    form = tarfile.USTAR_FORMAT
    data = write_tar(tmp_path / "x.tar", listed(), form=form).read_bytes()
    at = data.index(b"4.jpg\0")
    found, said = read(data[:at])  # between two members
    assert len(found) == 4
    assert "without the mark of an end" in said[0]
    for end in (at + 100, at + 512 + 700):  # within a header, within a content
        with pytest.raises(EOFError, match="ends"):
            read(data[:end])


def test_a_header_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 33
    with pytest.raises(ValueError, match="more than 1048576"):
        read(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_whatever_is_damaged_only_damage_is_raised(data: st.DataObject) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=data.draw(st.sampled_from(["w", "w:gz"]))) as tar:  # type: ignore[call-overload]
        for name, content in [*listed(3, 600), (LONG, b"long")]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    raw = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(len(raw) // 2, len(raw))) :]
    with contextlib.suppress(*DAMAGE):
        read(bytes(raw))


@pytest.mark.parametrize("blocks", [1, 2, 20])
def test_zeros_in_the_middle_are_no_end(tmp_path: Path, blocks: int) -> None:
    """A hole that a download left, which `tarfile` takes for the end without a word."""
    form = tarfile.USTAR_FORMAT
    data = bytearray(write_tar(tmp_path / "x.tar", listed(8), form=form).read_bytes())
    header = data.index(b"2.jpg\0")
    data[header : header + blocks * 512] = bytes(blocks * 512)
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        assert len(tar.getnames()) == 2
    found, said = read(bytes(data))
    whole = 3 + (blocks - 1) // 4  # a header and three blocks of content each
    names = [f"{number}.jpg" for number in (0, 1, *range(whole, 8))]
    assert [name for name, _ in found] == names
    assert len(said) == 1
    assert f"bytes before '{names[2]}' hold no member" in said[0]


def test_archives_one_behind_the_other_are_read_and_the_seam_is_named(tmp_path: Path) -> None:
    first, second = listed(2), [("a.jpg", b"a")]
    data = b"".join(write_tar(tmp_path / "x.tar", one).read_bytes() for one in (first, second))
    found, said = read(data)
    assert found == first + second
    assert "before 'a.jpg' hold no member" in said[0]
    assert len(said) == 1
