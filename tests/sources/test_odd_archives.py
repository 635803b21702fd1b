"""Archives as people have them: names, columns and types that nobody foresaw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.errors import InvalidInputError
from services.shards.store import open_store
from services.sources.parquet import ParquetSource
from services.sources.sample import Fault, Sample
from services.sources.webdataset import WebDatasetSource
from tests.shards.test_footer import footer_start
from tests.sources.archived import picture, write_tar
from tests.sources.test_sources import everything, pictures


def parquet(folder: Path, table: pa.Table, **options: str) -> ParquetSource:
    pq.write_table(table, folder / "x.parquet")
    return ParquetSource(open_store(str(folder)), **options)


def test_names_of_members_stay_apart(tmp_path: Path) -> None:
    members = [(".hidden/a.jpg", 1), ("hidden/a.jpg", 2), ("./c//d.jpg", 3), ("e.v1/f.x.jpg", 4)]
    write_tar(tmp_path / "x.tar", [(name, picture(number)) for name, number in members])
    found = pictures(everything(WebDatasetSource(open_store(str(tmp_path)))))
    assert {key: data for key, (data, _) in found.items()} == {
        "x/.hidden/a": picture(1),
        "x/hidden/a": picture(2),
        "x/c/d": picture(3),
        "x/e.v1/f": picture(4),
    }


def test_what_macos_puts_beside_files_is_no_picture(tmp_path: Path) -> None:
    """Its names begin with `._`: neither a picture, nor the end of a sample."""
    members = [("._b.jpg", b"mac"), ("b.jpg", picture(0)), ("._b.txt", b"mac"), ("b.txt", b"words")]
    write_tar(tmp_path / "x.tar", members)
    found = everything(WebDatasetSource(open_store(str(tmp_path)), "txt"))
    assert found == [Sample("x/b", picture(0), caption="words")]


def test_two_archives_of_one_name_are_refused(tmp_path: Path) -> None:
    for name, mode in (("x.tar", "w"), ("x.tar.gz", "w:gz")):
        write_tar(tmp_path / name, [("a.jpg", picture(0))], mode)
    with pytest.raises(InvalidInputError, match=r"x\.tar and x\.tar\.gz, whose pictures would"):
        WebDatasetSource(open_store(str(tmp_path)))


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        (pa.array([None, None, "a"]), ["00000000", "00000001", "a"]),
        (pa.array([b"k1", b"\xff", b"k3"]), ["k1", "\\xff", "k3"]),
        (pa.array([3, 1, 2]), ["3", "1", "2"]),
    ],
)
def test_keys_of_any_type(tmp_path: Path, keys: Any, wanted: list[str]) -> None:
    table = pa.table({"key": keys, "jpg": [picture(number) for number in range(3)]})
    assert list(pictures(everything(parquet(tmp_path, table)))) == [f"x/{key}" for key in wanted]


@pytest.mark.parametrize("packed", [lambda one: one, lambda one: one.dictionary_encode()])
def test_columns_may_be_dictionaries(tmp_path: Path, packed: Callable[[Any], Any]) -> None:
    table = pa.table(
        {
            "jpg": packed(pa.array([picture(0), None, picture(0)])),
            "words": packed(pa.array(["a", "b", None])),
        }
    )
    found = pictures(everything(parquet(tmp_path, table, captions="words")))
    assert [caption for _, caption in found.values()] == ["a", ""]


def nested(value: Any) -> pa.Table:
    return pa.table({"image": pa.array([value])})


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (nested({"bytes": {"bytes": b"1"}}), "no column of pictures"),
        (nested([b"1"]), "no column of pictures"),
        (nested({"path": "a"}), "no column of pictures"),
        (
            pa.Table.from_arrays([pa.array([b"1"])] * 2, ["jpg", "jpg"]),
            "2 columns are called 'jpg'",
        ),
        (
            pa.Table.from_arrays([pa.array([b"1"])] * 3, ["jpg", "key", "key"]),
            "2 columns are called 'key'",
        ),
    ],
)
def test_columns_that_are_no_pictures_or_not_one_are_refused(
    tmp_path: Path, table: pa.Table, words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        parquet(tmp_path, table)


def test_a_damaged_footer_is_a_fault_like_any_other(tmp_path: Path) -> None:
    """Whatever bit is flipped in it, also of the first file, whose columns are looked at before."""
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"jpg": [picture(0)]}), path)
    good = path.read_bytes()
    for place in range(footer_start(good), len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x91]) + good[place + 1 :])
        try:
            found = list(ParquetSource(open_store(str(tmp_path))).read(0))
        except InvalidInputError as error:
            assert "column" in str(error)  # noqa: PT017
        else:
            assert all(isinstance(one, Fault) or one.key == "x/00000000" for one in found)
