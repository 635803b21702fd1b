"""`seit diff`, `import-release` and `export-release` as a user runs them."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from services.shards.manifest import list_versions, load_manifest
from services.shards.release_files import ReleaseSplit, read_split, write_split
from services.shards.store import Store, open_store
from services.types import TokenRows
from services.wire.seit import v1 as wire
from tests.seit_command import Seit
from tests.small_datasets import write_dataset
from tests.small_disk import room_for

SPEC = wire.TokenSpec(grid_height=4, grid_width=6, codes=391, channels=8)
COUNTS = {"toy-train": 30, "toy-val": 10}


@pytest.fixture
def root(tmp_path: Path) -> Store:
    folder = tmp_path / "root"
    folder.mkdir()
    return open_store(str(folder))


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A small release of two splits of 4 x 6 grids, labels 0 to 2."""
    folder = tmp_path / "release"
    rng = np.random.default_rng(0)
    for stem, count in COUNTS.items():
        rows = TokenRows(
            ids=rng.integers(0, 391, (count, 4, 6)).astype(np.uint16),
            labels=np.arange(count, dtype=np.int64) % 3,
            keys=[""] * count,
            source_bytes=np.zeros(count, np.int64),
        )
        write_split(ReleaseSplit(folder, stem), [rows], count, 391)
    torch.save(torch.randn(391, 8, generator=torch.Generator().manual_seed(0)),
               folder / "codebook.ckpt")  # fmt: skip
    return folder


def test_a_release_goes_in_and_out(seit: Seit, root: Store, release: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    options = "--grid", "4", "6", "--image-size", "32", "48"
    names = "--classes", str(tmp_path / "names.txt")
    shown = seit("import-release", str(release), root.url, "toy", *options, *names)
    assert shown.code == 0, shown.err
    assert "40 images of 32x48 pixels, each as 4x6 tokens of 391 codes (release" in shown.out
    assert "3 classes: ant, bee, cat." in shown.out
    assert "40/40" in shown.err  # the bar
    assert seit("verify", root.url, "toy").code == 0

    back = tmp_path / "a long name, so that a path would wrap " / "out"
    shown = seit("export-release", root.url, "toy", str(back))
    assert shown.code == 0, shown.err
    assert "7 files" in shown.out
    assert "40/40" in shown.err
    for stem in COUNTS:
        mine, theirs = ReleaseSplit(back, stem), ReleaseSplit(release, stem)
        assert str(mine.data) in shown.out
        for path, source in (mine.data, theirs.data), (mine.index, theirs.index):
            assert gzip.decompress(path.read_bytes()) == gzip.decompress(source.read_bytes())
        assert mine.labels.read_text() == theirs.labels.read_text()


def test_names_of_classes_are_lines_whatever_stands_in_them(
    seit: Seit, root: Store, release: Path, tmp_path: Path
) -> None:
    """A name with U+2028 or a form feed in it is one name; those behind it keep their labels."""
    names = "\ufeffant\u2028s\r\nbee\x0c\x85\ncat"
    (tmp_path / "names.txt").write_bytes(names.encode())
    options = "--grid", "4", "6", "--classes", str(tmp_path / "names.txt")
    assert seit("import-release", str(release), root.url, "toy", *options).code == 0
    classes = load_manifest(root, "toy").manifest.classes
    assert classes == ["ant\u2028s", "bee\x0c\x85", "cat"]


@pytest.mark.parametrize("age", ["nan", "-1"])
def test_an_age_that_no_file_has_is_refused(seit: Seit, root: Store, age: str) -> None:
    write_dataset(root)
    shown = seit("gc", root.url, "digits", "--min-age-hours", age)
    assert shown.code == 2
    assert "valid are 0 and more" in shown.err


def test_an_export_replaces_only_what_it_is_told_to(seit: Seit, root: Store, release: Path) -> None:
    seit("import-release", str(release), root.url, "toy", "--grid", "4", "6")
    before = {path.name: path.read_bytes() for path in release.iterdir()}
    shown = seit("export-release", root.url, "toy", str(release))
    assert (shown.code, shown.out) == (2, "")
    assert "holds a release already" in shown.err
    assert {path.name: path.read_bytes() for path in release.iterdir()} == before
    assert seit("export-release", root.url, "toy", str(release), "--overwrite").code == 0
    rows = list(read_split(ReleaseSplit(release, "toy-train"), SPEC))
    assert sum(map(len, rows)) == COUNTS["toy-train"]


def test_an_export_takes_any_version(
    seit: Seit, root: Store, release: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        assert seit("import-release", str(release), root.url, "toy", "--grid", "4", "6").code == 0
        (release / "toy-val-token.data.bin.gz").unlink(missing_ok=True)
    assert [len(load_manifest(root, "toy", number).manifest.splits) for number in (1, 2)] == [2, 1]
    out = str(tmp_path / "out")
    assert "7 files" in seit("export-release", root.url, "toy", out, "--version", "1").out
    assert "4 files" in seit("export-release", root.url, "toy", str(tmp_path / "new")).out


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("grid", "give the release's grid"),
        ("folder", "there is no folder"),
        ("empty", "codebook"),
        ("data", "fetch it again"),
        ("classes", "no file"),
        ("few", "no name among the 2 classes"),
        ("latin", "class names in"),
        ("name", "not valid"),
    ],
)
def test_a_bad_import_says_why_and_commits_nothing(
    seit: Seit, root: Store, release: Path, tmp_path: Path, spoil: str, words: str
) -> None:
    folder, dataset, names = release, "toy", tmp_path / "names.txt"
    if spoil == "few":
        names.write_text("ant\nbee\n")
    if spoil == "latin":
        names.write_bytes("caf\xe9\n".encode("latin-1"))
    if spoil == "data":
        (path,) = release.glob("toy-val*data*")
        path.write_bytes(path.read_bytes()[:-20])
    if spoil in ("folder", "empty"):
        folder = tmp_path / "other"
    if spoil == "empty":
        folder.mkdir()
    if spoil == "name":
        dataset = "../toy"
    grid = ("4", "5") if spoil == "grid" else ("4", "6")
    classes = ("--classes", str(names)) if spoil in ("classes", "few", "latin") else ()
    shown = seit("import-release", str(folder), root.url, dataset, "--grid", *grid, *classes)
    assert (shown.code, shown.out) == (2, "")
    assert words in shown.err
    assert list_versions(root, "toy") == []


def test_an_export_that_cannot_be_is_refused(seit: Seit, root: Store, tmp_path: Path) -> None:
    write_dataset(root, "wide", spec=wire.TokenSpec(
        grid_height=4, grid_width=6, codes=600, channels=8
    ))  # fmt: skip
    shown = seit("export-release", root.url, "wide", str(tmp_path / "out"))
    assert (shown.code, shown.out) == (2, "")
    assert "holds at most 511" in shown.err
    assert seit("export-release", root.url, "none", str(tmp_path / "out")).code == 2
    (tmp_path / "file").write_bytes(b"")
    write_dataset(root)
    shown = seit("export-release", root.url, "digits", str(tmp_path / "file"))
    assert shown.code == 2
    assert str(tmp_path / "file") in shown.err


def column_of(path: Path, keys: list[str], values: list[object]) -> str:
    pq.write_table(pa.table({"key": keys, "value": values}), path)
    return str(path)


def test_a_column_is_added_and_dropped(seit: Seit, root: Store, tmp_path: Path) -> None:
    write_dataset(root)
    train = [f"train/0/{number}/{row}.png" for number in range(3) for row in range(5)]
    file = column_of(tmp_path / "v.parquet", train, list(range(15)))
    shown = seit("add-column", root.url, "digits", "hint", "--values", file, "--splits", "train")
    assert shown.code == 0, shown.err
    words = " ".join(shown.out.split())
    assert "It says: column hint (int64) added to 15 rows" in words
    assert "hint train int64 3 of 3" in words
    assert "15/15" in shown.err
    assert seit("verify", root.url, "digits").code == 0
    assert "train/hint" in seit("diff", root.url, "digits", "1", "2").out
    assert seit("gc", root.url, "digits", "--min-age-hours", "0").out == "nothing to collect\n"
    shown = seit("drop-column", root.url, "digits", "hint")
    assert shown.code == 0
    assert "hint train" not in " ".join(shown.out.split())
    assert list_versions(root, "digits") == [1, 2, 3]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("keys", "2 keys of the dataset are not in the file"),
        ("file", "there is no file"),
        ("garbage", "is not a whole Parquet file"),
        ("name", "column name '../hint' is not valid"),
        ("split", "no split 'test'; there are: train, validation"),
        ("dataset", "no dataset 'none'"),
    ],
)
def test_a_bad_column_says_why_and_changes_nothing(
    seit: Seit, root: Store, tmp_path: Path, spoil: str, words: str
) -> None:
    write_dataset(root)
    keys = ["validation/0/0/0.png", "validation/0/0/1.png"]
    path = tmp_path / "v.parquet"
    column_of(path, ["a", "b"] if spoil == "keys" else keys, [1, 2])
    if spoil == "garbage":
        path.write_bytes(b"PAR1 and no more")
    if spoil == "file":
        path.unlink()
    shown = seit(
        "add-column",
        root.url,
        "none" if spoil == "dataset" else "digits",
        "../hint" if spoil == "name" else "hint",
        *("--values", str(path)),
        *("--splits", "test" if spoil == "split" else "validation"),
    )
    assert (shown.code, shown.out) == (2, "")
    assert words in shown.err
    assert list_versions(root, "digits") == [1]
    shown = seit("drop-column", root.url, "digits", "hint")
    assert (shown.code, shown.out) == (2, "")
    assert "has no column 'hint'" in shown.err
    assert seit("add-column", root.url, "digits", "hint").code == 2


def test_inspect_tells_of_repeated_grids_and_dead_codes(seit: Seit, root: Store) -> None:
    spec = wire.TokenSpec(grid_height=1, grid_width=1, codes=4, channels=1)
    manifest = write_dataset(root, spec=spec, rows=40).manifest
    train = manifest.splits[0]
    assert train.duplicate_rows is not None
    assert train.duplicate_rows >= 116
    words = " ".join(seit("inspect", root.url, "digits").out.split())
    used = sum(count > 0 for count in train.code_counts)
    assert f"train {used} {4 - used} " in words
    # Behind the grids stand pictures, which nobody counted here.
    assert re.search(rf" {train.duplicate_rows} \D+ validation", words)


def test_diff_tells_what_changed(seit: Seit, root: Store) -> None:
    write_dataset(root, seed=1)
    write_dataset(root, seed=1, rows=6)
    write_dataset(root, seed=1, rows=6)
    shown = seit("diff", root.url, "digits", "1", "2")
    assert shown.code == 0
    words = " ".join(shown.out.split())
    assert "train 18 +3 3 shards 3 shards none" in words
    assert "validation 2 +0 1 shard 1 shard none" in words
    assert "train: images of 1 labels: 2 ([red]two) +3." in words
    assert "(total variation); counts of" in words
    assert "Versions 2 and 3 hold the same rows" in seit("diff", root.url, "digits", "2", "3").out


def test_diff_of_a_version_that_is_not_there(seit: Seit, root: Store) -> None:
    write_dataset(root)
    shown = seit("diff", root.url, "digits", "1", "2")
    assert (shown.code, shown.out) == (2, "")
    assert "no version 2; there are: [1]" in shown.err
    assert seit("diff", root.url, "digits", "1").code == 2


def test_an_export_onto_a_full_disk_names_its_folder_and_leaves_what_stood(
    seit: Seit, root: Store, release: Path, tmp_path: Path
) -> None:
    """The codebook is the largest file here, and what torch says of a full disk is no OSError."""
    assert seit("import-release", str(release), root.url, "toy", "--grid", "4", "6").code == 0
    out = tmp_path / "out"
    assert seit("export-release", root.url, "toy", str(out)).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with room_for(8192):
        ended = seit("export-release", root.url, "toy", str(out), "--overwrite")
    assert ended.code == 2
    assert f"{out} cannot be written (" in ended.err
    assert "free space" in ended.err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
