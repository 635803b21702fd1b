"""Sources of pictures: what they give, alike whenever they are read, and what damage costs."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.errors import InvalidInputError, NotFoundError, StoreError
from services.shards.retry import RetryPolicy
from services.shards.store import LocalStore, open_store
from services.sources import sample as module
from services.sources.archives import ArchiveSource
from services.sources.fields import Fields
from services.sources.listed import ListedSource
from services.sources.parquet import ParquetSource
from services.sources.plain import PlainSource
from services.sources.sample import Absent, Fault, Found, PictureSource, Sample
from services.sources.webdataset import WebDatasetSource
from tests.sources.archived import picture, samples, write_parquet, write_tar


def everything(source: PictureSource) -> list[Found]:
    """All that a source gives; that it does so twice, and elsewhere, is held here."""
    jobs = range(len(source.sizes))
    found = [one for job in jobs for one in source.read(job)]
    elsewhere: PictureSource = pickle.loads(pickle.dumps(source))
    assert [one for job in reversed(jobs) for one in reversed(list(elsewhere.read(job)))] == (
        found[::-1]
    )
    keys = [one.key for one in found if isinstance(one, Sample)]
    assert len(set(keys)) == len(keys)
    return found


def pictures(found: list[Found]) -> dict[str, tuple[bytes, str]]:
    return {one.key: (one.load(), one.caption) for one in found if isinstance(one, Sample)}


def test_tars_in_folders_are_samples_with_captions(tmp_path: Path) -> None:
    write_tar(tmp_path / "b/00001.tar", samples([3, 4]))
    write_tar(tmp_path / "00000.tar.gz", samples([0, 1, 2]), "w:gz")
    write_tar(tmp_path / ".part.tar", samples([9]))
    (tmp_path / "00000.parquet").write_bytes(b"a table of URLs")
    source = WebDatasetSource(open_store(str(tmp_path)), "txt")
    assert (source.files, source.unit, len(source.sizes)) == (2, "bytes", 1)
    assert pictures(everything(source)) == {
        f"{'00000' if n < 3 else 'b/00001'}/{n:09d}": (picture(n), f"words {n}") for n in range(5)
    }
    by_json = WebDatasetSource(open_store(str(tmp_path)), "caption", job_bytes=1)
    assert len(by_json.sizes) == 2
    assert {c for _, c in pictures(everything(by_json)).values()} == {f"json {n}" for n in range(5)}


def test_what_is_wrong_in_a_tar_is_named_and_the_rest_taken(tmp_path: Path) -> None:
    one = samples([1])
    write_tar(
        tmp_path / "x.tar",
        [
            *samples([0]),
            ("text.txt", b"alone"),
            *one,
            ("between.jpg", picture(5)),
            *one,  # the same name again
            ("./a/two.seg.png", picture(6)),
            ("a/two.jpg", picture(7)),  # of one sample the first picture counts
            (f"{'k' * 1100}.jpg", picture(8)),
        ],
    )
    found = everything(WebDatasetSource(open_store(str(tmp_path))))
    assert list(pictures(found)) == ["x/000000000", "x/000000001", "x/between", "x/a/two"]
    assert pictures(found)["x/a/two"][0] == picture(6)
    assert [item.key for item in found if isinstance(item, Absent)] == ["text"]
    faults = [item for item in found if isinstance(item, Fault)]
    assert [fault.path for fault in faults[:1]] == ["x/000000001"]
    assert "another picture of the file has the same name" in faults[0].reason
    assert "has 1102 bytes" in faults[1].reason
    assert not any(fault.file for fault in faults)


def test_a_cut_tar_gives_what_is_whole(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", samples(range(6)))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"000000004.jpg") + 700])
    found = everything(WebDatasetSource(open_store(str(tmp_path))))
    assert len(pictures(found)) == 4
    faults = [item for item in found if isinstance(item, Fault)]
    assert faults[0].file
    assert "cannot be read to its end" in faults[0].reason
    assert "are cut off" in faults[1].reason  # the sample that was under way
    (tmp_path / "x.tar").write_bytes(b"")
    assert [type(one) for one in everything(WebDatasetSource(open_store(str(tmp_path))))] == [Fault]


def test_a_picture_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.sources import webdataset

    for place in (module, webdataset):
        monkeypatch.setattr(place, "MAX_PICTURE_BYTES", 5000)
    write_tar(tmp_path / "x.tar", [("big.jpg", bytes(6000)), ("fit.jpg", picture(0))])
    found = everything(WebDatasetSource(open_store(str(tmp_path))))
    assert list(pictures(found)) == ["x/fit"]
    assert "a picture of 6000 bytes, more than" in next(
        item.reason for item in found if isinstance(item, Fault)
    )


def test_parquet_as_img2dataset_writes_it(tmp_path: Path) -> None:
    write_parquet(tmp_path / "00000.parquet", [0, 1, None, 3])
    write_parquet(tmp_path / "00001.parquet", range(10, 19))
    found = everything(ParquetSource(open_store(str(tmp_path)), "caption"))
    numbers = [0, 1, 3, *range(10, 19)]
    assert list(pictures(found).values()) == [(picture(n), f"words {n}") for n in numbers]
    assert "00001/000000008" in pictures(found)
    assert [item.key for item in found if isinstance(item, Absent)] == ["000000002"]


def test_parquet_with_structs_and_without_keys(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": picture(n), "path": f"{n}.jpg"} for n in range(3)]
    pq.write_table(
        pa.table({"image": pa.array(rows, kind), "n": [1, 2, 3]}), tmp_path / "t.parquet"
    )
    found = pictures(everything(ParquetSource(open_store(str(tmp_path)))))
    assert found == {f"t/{n:08d}": (picture(n), "") for n in range(3)}


def test_a_damaged_row_group_costs_its_rows_alone(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "00000.parquet", range(15))
    data = bytearray(path.read_bytes())
    at = data.index(picture(7)[-60:-10])
    data[at] ^= 0xFF
    path.write_bytes(data)
    write_parquet(tmp_path / "00001.parquet", range(20, 22))
    (tmp_path / "00002.parquet").write_bytes(b"PAR1 and no more")
    found = everything(ParquetSource(open_store(str(tmp_path))))
    kept = list(pictures(found))
    assert len(kept) == 12
    assert not any(f"00000/{n:09d}" in kept for n in range(5, 10))
    faults = [item for item in found if isinstance(item, Fault)]
    assert "5 of the 5 rows of row group 1 cannot be read" in faults[0].reason
    assert faults[1].path == "00002.parquet"


@pytest.mark.parametrize(
    ("captions", "column", "says"),
    [
        ("", "", r"no column of pictures.*A list of URLs holds no pictures"),
        ("", "url", r"no column of pictures \(url\)"),
    ],
)
def test_a_parquet_file_of_urls_is_refused(
    tmp_path: Path, captions: str, column: str, says: str
) -> None:
    pq.write_table(pa.table({"url": ["http://x"]}), tmp_path / "urls.parquet")
    with pytest.raises(InvalidInputError, match=says):
        ParquetSource(open_store(str(tmp_path)), captions, column)
    write_parquet(tmp_path / "a.parquet", [1])
    with pytest.raises(InvalidInputError, match="no column 'words' of text for captions"):
        ParquetSource(open_store(str(tmp_path)), "words")


def test_plain_folders_are_nested_in_any_way(tmp_path: Path) -> None:
    for name in ("1.jpg", "a/2.jpg", "a/deep/3.JPG", "b/4.jpg", "b/5.jpg", ".hidden/6.jpg"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(int(path.stem)))
    (tmp_path / "in/b/4.txt").write_text("four")
    (tmp_path / "in/b/notes.txt").write_text("no picture")
    (tmp_path / "in/b/loop").symlink_to(tmp_path / "in")
    source = PlainSource(tmp_path / "in", rows=2, captions="txt")
    assert list(source.sizes) == [2, 2, 1]
    assert pictures(everything(source)) == {
        "1.jpg": (picture(1), ""),
        "a/2.jpg": (picture(2), ""),
        "a/deep/3.JPG": (picture(3), ""),
        "b/4.jpg": (picture(4), "four"),
        "b/5.jpg": (picture(5), ""),
    }
    (tmp_path / "in/b/5.jpg").unlink()
    assert "someone changes it meanwhile" in next(
        one.reason for one in source.read(2) if isinstance(one, Fault)
    )


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no folder"):
        PlainSource(tmp_path / "nowhere", 10)
    with pytest.raises(InvalidInputError, match=r"no picture .* at any depth"):
        PlainSource(tmp_path, 10)
    with pytest.raises(InvalidInputError, match=r"no file \.tar"):
        WebDatasetSource(open_store(str(tmp_path)))


def test_a_listed_source_has_a_job_for_each_shard() -> None:
    from services.pictures import Picture

    splits = {
        "train": [Picture(Path(f"/x/{n}.png"), n % 2, f"{n}.png") for n in range(5)],
        "validation": [Picture(Path("/x/v.png"), 1, "v.png")],
    }
    source = ListedSource("classes", ("a", "b"), splits, rows=2)
    assert list(source.sizes) == [2, 2, 1, 1]
    found = [one for one in everything(source) if isinstance(one, Sample)]
    assert [(one.key, one.label, one.split) for one in found] == [
        *((f"{n}.png", n % 2, "train") for n in range(5)),
        ("v.png", 1, "validation"),
    ]


def test_files_of_an_object_store_are_read_by_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", 700)
    store = open_store("memory://tars")
    data = Path(__file__).read_bytes() * 3
    store.write("x.bin", data)
    with module.open_file(store, "x.bin", len(data)) as file:
        assert file.read() == data
        assert file.seek(-10, 2) == len(data) - 10
        assert file.read() == data[-10:]
        file.seek(5)
        assert file.read(1500) == data[5:1505]


@pytest.mark.parametrize(
    ("members", "wanted", "caption"),
    [
        ({"txt": b" a cat \n", "json": b"{}"}, "txt", "a cat"),
        ({"json": b'{"txt": "of json"}'}, "txt", "of json"),
        ({"json": b'{"alt": "of json"}'}, "alt", "of json"),
        ({"json": b'{"alt": 3}'}, "alt", ""),
        ({"json": b"[" * 100_000}, "alt", ""),
        ({"txt": b"\xff cat"}, "txt", "\ufffd cat"),
        ({"txt": b"x" * (1 << 21)}, "txt", ""),
        ({}, "txt", ""),
    ],
)
def test_captions(members: dict[str, bytes], wanted: str, caption: str) -> None:
    assert Fields(wanted).caption(members) == caption


class Dying(LocalStore):
    """A storage, not of this machine's files, that stops to answer after some requests."""

    left = 2

    def local_path(self, path: str) -> Path | None:  # type: ignore[override]
        return None

    def read_range(self, path: str, start: int, length: int) -> bytes:
        type(self).left -= 1
        if type(self).left < 0:
            raise StoreError("no answer")
        return super().read_range(path, start, length)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("answers", [0, 1, 2, 3])
def test_a_storage_that_does_not_answer_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, answers: int
) -> None:
    """Else an outage would count as archives damaged, and a version be committed without them."""
    monkeypatch.setattr(module, "_CHUNK_BYTES", 2048)
    store = Dying(str(tmp_path), {}, RetryPolicy())
    monkeypatch.setattr(Dying, "left", 10**6)
    if kind == "tar":
        write_tar(tmp_path / "x.tar", samples(range(20)))
        source: ArchiveSource = WebDatasetSource(store)
    else:
        write_parquet(tmp_path / "x.parquet", range(60))
        source = ParquetSource(store)
    assert len(list(source.read(0))) >= 20
    monkeypatch.setattr(Dying, "left", answers)
    with pytest.raises(StoreError, match="no answer"):
        list(source.read(0))
