"""Folders that somebody else filled, with what they may hold besides files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.errors import InvalidInputError, NotFoundError, StoreError
from services.folders import check_file, read_file, replaced, walk
from services.masks import list_masked
from services.pictures import list_pictures, open_picture, picture_size
from services.shards.store import open_store
from services.sources.listed import ListedSource
from services.sources.parquet import ParquetSource
from services.sources.plain import PlainSource
from services.sources.sample import PictureSource, Sample
from services.sources.webdataset import WebDatasetSource
from tests.small_disk import room_for
from tests.sources.archived import picture, samples, write_parquet, write_tar


def put(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(number))
    return path


def test_a_link_that_leads_round_gives_each_picture_once(tmp_path: Path) -> None:
    put(tmp_path / "in/cat/1.jpg")
    put(tmp_path / "in/cat/deep/2.jpg")
    put(tmp_path / "masks/cat/1.png")
    put(tmp_path / "masks/cat/deep/2.png")
    (tmp_path / "masks/classes.txt").write_text("cat\n")
    for folder in ("in", "masks"):
        (tmp_path / folder / "cat/again").symlink_to(".")
        (tmp_path / folder / "cat/deep/up").symlink_to("..")
    keys = ["cat/1.jpg", "cat/deep/2.jpg"]
    listed = list_pictures(tmp_path / "in").splits["train"]
    assert [one.key for one in listed] == keys
    masked = list_masked(tmp_path / "in", tmp_path / "masks")
    assert [one.key for one in masked.splits["train"]] == keys
    assert sorted(masked.masks) == keys


def test_links_to_folders_are_followed_by_every_source(tmp_path: Path) -> None:
    """To data that lies elsewhere, round in a circle, and to nothing."""
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "in"
    put(elsewhere / "1.jpg", 1)
    write_tar(elsewhere / "1.tar", samples([1]))
    write_parquet(elsewhere / "1.parquet", [1])
    put(root / "cat/0.jpg")
    write_tar(root / "cat/0.tar", samples([0]))
    write_parquet(root / "cat/0.parquet", [0])
    (root / "cat/linked").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(root)
    for name in ("tar", "parquet"):
        (root / f"cat/gone.{name}").symlink_to("nothing")
    store, listed = open_store(str(root)), list_pictures(root)
    pictures = ["cat/0.jpg", "cat/linked/1.jpg"]
    sources: list[tuple[PictureSource, list[str]]] = [
        (PlainSource(root, 10), pictures),
        (ListedSource("classes", listed.classes, listed.splits, 10), pictures),
        (WebDatasetSource(store), ["cat/0/000000000", "cat/linked/1/000000001"]),
        (ParquetSource(store), ["cat/0/000000000", "cat/linked/1/000000000"]),
    ]
    for source, wanted in sources:
        found = [one for job in range(len(source.sizes)) for one in source.read(job)]
        assert [one.key for one in found if isinstance(one, Sample)] == wanted, source.kind
        assert len(found) == 2
    with pytest.raises(NotFoundError, match=r"no folder .*nowhere"):
        WebDatasetSource(open_store(str(tmp_path / "nowhere")))


def test_folders_are_given_in_order_and_those_taken_out_are_not_entered(tmp_path: Path) -> None:
    for name in ("b/1", "a/2", "a/c/3", "d/4"):
        put(tmp_path / name)
    places = []
    for place, folders, files in walk(tmp_path):
        places.append((os.path.relpath(place, tmp_path), files))
        if "d" in folders:
            folders.remove("d")
    assert places == [(".", []), ("a", ["2"]), ("a/c", ["3"]), ("b", ["1"])]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    """Its path is longer than the system takes; `os.walk` itself leaves such folders out."""
    put(tmp_path / "cat/1.jpg")
    above = os.open(tmp_path / "cat", os.O_RDONLY)
    for _ in range(20):
        os.mkdir("n" * 250, dir_fd=above)
        below = os.open("n" * 250, os.O_RDONLY, dir_fd=above)
        os.close(above)
        above = below
    os.close(above)
    for read in (
        lambda: list(walk(tmp_path)),
        lambda: list_pictures(tmp_path),
        lambda: PlainSource(tmp_path, rows=10),
    ):
        with pytest.raises(InvalidInputError, match=r"cannot be listed .*missing without a word"):
            read()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "absent"])
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "absent":
        path.symlink_to("/dev/zero" if kind == "device" else path)
    words = "cannot be read" if kind in ("loop", "absent") else "not a file but"
    for read in (read_file, check_file, open_picture, picture_size):
        with pytest.raises(InvalidInputError, match=words):
            read(path)
    with pytest.raises(InvalidInputError, match=words):
        Sample("x", path).load()


def test_a_file_may_be_as_large_as_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_file(path) == read_file(path, 5) == b"12345"
    with pytest.raises(InvalidInputError, match="5 bytes, more than 4"):
        read_file(path, 4)


def test_captions_that_cannot_be_read_are_missing(tmp_path: Path) -> None:
    for number in range(4):
        put(tmp_path / f"{number}.jpg", number)
    (tmp_path / "0.txt").write_text("zero")
    os.mkfifo(tmp_path / "1.txt")
    (tmp_path / "2.txt").symlink_to("/proc/self/mem")  # a file, of which no byte can be read
    with open(tmp_path / "3.txt", "wb") as file:
        file.truncate(1 << 40)
    found = PlainSource(tmp_path, rows=10, captions="txt").read(0)
    assert [one.caption for one in found if isinstance(one, Sample)] == ["zero", "", "", ""]


def test_a_file_is_replaced_whole_or_not_at_all_and_what_cannot_be_written_is_named(
    tmp_path: Path,
) -> None:
    path = tmp_path / "made" / "it.png"
    with replaced(path) as part:
        part.write_bytes(b"first")
    said = r"made/it\.png cannot be written \(.+\): nothing new"
    with pytest.raises(StoreError, match=said), room_for(10), replaced(path) as part:
        part.write_bytes(b"longer than ten bytes")
    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(StoreError, match="name another place"), replaced(path / "below") as part:
        part.write_bytes(b"")
