"""A release folder becomes a dataset, and a dataset a release folder, without loss."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from services.errors import (
    FormatError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    StoreError,
)
from services.shards.cache import ShardCache
from services.shards.manifest import commit, list_versions, load_manifest, put_asset, read_asset
from services.shards.reader import DatasetReader
from services.shards.release import export_release, import_release, read_synonyms
from services.shards.release_files import ReleaseSplit, write_split
from services.shards.store import Store, open_store
from services.shards.writer import build_split, write_shard
from services.tokens.codebook import Codebook
from services.types import TokenRows
from services.wire.seit import v1 as wire
from tests.shards.conftest import SPEC

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def release(tmp_path: Path, make_rows: Callable[[int, int], TokenRows]) -> Path:
    """A small release of our own with two splits of 4 x 6 grids, 391 codes."""
    folder = tmp_path / "release"
    for stem, count in ("toy-train", 30), ("toy-val", 10):
        write_split(ReleaseSplit(folder, stem), [make_rows(count, count)], count, 391)
    generator = torch.Generator().manual_seed(0)
    torch.save(torch.randn(391, 8, generator=generator), folder / "codebook.ckpt")
    return folder


def test_published_release_becomes_a_dataset_and_returns(
    golden: Path, root: Store, tmp_path: Path
) -> None:
    source = golden / "release"
    expected = np.load(source / "expected.npz")
    loaded = import_release(source, root, "tiny", grid=(32, 32), shard_rows=10)
    assert [shard.rows for shard in loaded.manifest.splits[0].shards] == [10, 10, 4]

    cache = ShardCache(tmp_path / "cache", 1 << 24)
    reader = DatasetReader(root, "tiny", split="train", cache=cache)
    batches = list(reader.iter_rows(7))
    ids = np.concatenate([rows.ids for rows in batches])
    np.testing.assert_array_equal(ids, expected["tokens"])
    labels = np.concatenate([rows.labels for rows in batches])
    np.testing.assert_array_equal(labels, expected["labels"])
    np.testing.assert_array_equal(reader.code_counts, np.bincount(ids.ravel(), minlength=391))

    target = tmp_path / "back"
    (files,) = export_release(root, "tiny", target, cache)
    assert files.data.name == "tiny-train-token.data.bin.gz"
    for path in files.data, files.index:
        mine = gzip.decompress(path.read_bytes())
        assert mine == gzip.decompress((source / path.name).read_bytes())
    assert files.labels.read_text().split() == (source / files.labels.name).read_text().split()
    codebook = [torch.load(at / "codebook.ckpt", weights_only=True) for at in (source, target)]
    torch.testing.assert_close(*codebook, rtol=0, atol=0)
    synonyms = [json.loads((at / "synonyms.json").read_text()) for at in (source, target)]
    assert synonyms[0] == synonyms[1]


def test_published_synonyms_are_the_codebooks(golden: Path) -> None:
    published = read_synonyms(golden / "release/synonyms.json", 391)
    codebook = Codebook.from_published(golden / "release/codebook.ckpt")
    computed = codebook.synonyms(published.shape[1]).numpy()
    assert (computed == published).mean() > 0.999  # ties may change places


def test_all_splits_are_imported_under_our_names(
    release: Path, root: Store, tmp_path: Path
) -> None:
    names = [f"class {label}" for label in range(30)]
    loaded = import_release(
        release, root, "toy", grid=(4, 6), image_size=(32, 48), classes=names, shard_rows=16
    )
    manifest = loaded.manifest
    assert [split.name for split in manifest.splits] == ["train", "validation"]
    assert manifest.classes == names
    assert manifest.spec is not None
    assert (manifest.spec.codes, manifest.spec.channels, manifest.spec.image_width) == (391, 8, 48)
    (asset,) = manifest.assets
    weight = Codebook.from_bytes(read_asset(root, "toy", asset)).weight
    published = torch.load(release / "codebook.ckpt", weights_only=True)
    torch.testing.assert_close(weight, published, rtol=0, atol=0)
    stems = [
        files.stem
        for files in export_release(root, "toy", tmp_path / "out", ShardCache(tmp_path / "c", 1))
    ]
    assert stems == ["toy-train", "toy-val"]
    import_release(release, root, "toy", grid=(4, 6))
    assert load_manifest(root, "toy").manifest.version == 2


def test_nothing_is_committed_after_an_error(release: Path, root: Store) -> None:
    with pytest.raises(FormatError, match="give the release's grid"):
        import_release(release, root, "toy", grid=(4, 4))
    with pytest.raises(FormatError, match="no name among the 2 classes"):
        import_release(release, root, "toy", grid=(4, 6), classes=["a", "b"])
    (release / "synonyms.json").write_text("{}")
    with pytest.raises(FormatError, match="synonyms"):
        import_release(release, root, "toy", grid=(4, 6))
    (release / "synonyms.json").unlink()
    for path in release.glob("toy-train*"):
        shutil.copy(path, release / path.name.replace("toy-", "other-"))
    with pytest.raises(InvalidInputError, match="two sets of files for split 'train'"):
        import_release(release, root, "toy", grid=(4, 6))
    (release / "codebook.ckpt").unlink()
    with pytest.raises(NotFoundError, match="codebook"):
        import_release(release, root, "toy", grid=(4, 6))
    assert list_versions(root, "toy") == []


def commit_splits(root: Store, rows: TokenRows, names: list[str], assets: list[str]) -> None:
    """A version of dataset "ds" with a shard of these rows in each split."""
    codebook = Codebook(torch.randn(391, 8, generator=torch.Generator().manual_seed(1)))
    table = np.roll(np.arange(391)[:, None], -1, 0)
    packed = safetensors.numpy.save({"synonyms": table}, {"seit": "synonyms", "format": "1"})
    data = {"codebook": codebook.to_bytes(), "synonyms": packed}
    results = {name: [write_shard(root, "ds", name, rows, SPEC)] for name in names}
    commit(
        root,
        wire.Manifest(
            dataset="ds",
            spec=SPEC,
            tokenizer_kind="release",
            assets=[put_asset(root, "ds", kind, data[kind]) for kind in assets],
            splits=[build_split(root, "ds", name, results[name], 391) for name in names],
        ),
    )


@pytest.mark.parametrize("names", [["val", "validation"], ["validation", "train", "val"]])
def test_splits_that_would_have_the_same_files_are_refused(
    root: Store, make_rows: Callable[[int, int], TokenRows], tmp_path: Path, names: list[str]
) -> None:
    commit_splits(root, make_rows(3, 0), names, ["codebook"])
    with pytest.raises(InvalidInputError, match="would both be ds-val"):
        export_release(root, "ds", tmp_path / "out", ShardCache(tmp_path / "c", 1))
    assert not (tmp_path / "out").exists()


def test_no_file_of_an_older_release_stands_beside_a_new_one(
    root: Store, make_rows: Callable[[int, int], TokenRows], tmp_path: Path
) -> None:
    out, cache = tmp_path / "out", ShardCache(tmp_path / "c", 1)

    def standing() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in out.iterdir()}

    commit_splits(root, make_rows(3, 0), ["train", "validation"], ["codebook", "synonyms"])
    export_release(root, "ds", out, cache)
    (out / "notes.txt").write_text("a user's own")
    first = standing()
    assert len(first) == 9
    commit_splits(root, make_rows(4, 1), ["train"], ["codebook"])
    with pytest.raises(InvalidInputError, match="holds a release already"):
        export_release(root, "ds", out, cache)
    shard = load_manifest(root, "ds").manifest.splits[0].shards[0]
    whole = root.read(f"ds/{shard.path}")
    root.write(f"ds/{shard.path}", whole[:-1])
    with pytest.raises(IntegrityError):
        export_release(root, "ds", out, cache, overwrite=True)
    assert standing() == first
    root.write(f"ds/{shard.path}", whole)
    export_release(root, "ds", out, cache, overwrite=True)
    assert sorted(standing()) == [
        "codebook.ckpt",
        "ds-train-label.txt",
        "ds-train-token.data.bin.gz",
        "ds-train-token.index.npy.gz",
        "notes.txt",
    ]
    again = import_release(out, root, "again", grid=(4, 6)).manifest
    assert [shard.rows for shard in again.splits[0].shards] == [4]


@pytest.mark.parametrize("ends", range(1, 14))
def test_an_export_that_ends_midway_leaves_no_release_of_two_halves(
    root: Store,
    make_rows: Callable[[int, int], TokenRows],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ends: int,
) -> None:
    """Killed before any of the steps that change the folder: one of both releases, or none."""
    out, cache = tmp_path / "out", ShardCache(tmp_path / "c", 1)
    codebook = ["codebook"]
    commit_splits(root, make_rows(3, 0), ["train", "validation"], [*codebook, "synonyms"])
    export_release(root, "ds", out, cache)
    commit_splits(root, make_rows(4, 1), ["train"], codebook)
    left = ends

    def dying(real: Callable[..., None]) -> Callable[..., None]:
        def step(path: Path, *more: Path, **options: bool) -> None:
            nonlocal left
            left -= Path(path).parent == out or bool(more and Path(more[0]).parent == out)
            if not left:
                raise KeyboardInterrupt
            real(path, *more, **options)

        return step

    monkeypatch.setattr(Path, "unlink", dying(Path.unlink))
    monkeypatch.setattr(os, "replace", dying(os.replace))
    with contextlib.suppress(KeyboardInterrupt):
        export_release(root, "ds", out, cache, overwrite=True)
    monkeypatch.undo()
    try:
        found = import_release(out, root, "again", grid=(4, 6)).manifest
    except NotFoundError:
        assert not (out / "codebook.ckpt").exists()
        return
    rows = {split.name: sum(shard.rows for shard in split.shards) for split in found.splits}
    kinds = [asset.kind for asset in found.assets]
    assert (rows, kinds) in (
        ({"train": 3, "validation": 3}, ["codebook", "synonyms"]),
        ({"train": 4}, ["codebook"]),
    )


_EXPORTER = """
import sys
from pathlib import Path
from services.shards.cache import ShardCache
from services.shards.release import export_release
from services.shards.store import open_store
def told(done, total):
    print("midway", flush=True)
    sys.stdin.readline()
root, out, cache = sys.argv[1:]
export_release(open_store(root), "ds", Path(out), ShardCache(cache, 1), progress=told)
"""


def test_what_a_killed_export_left_goes_with_the_next_one_and_a_living_one_stays(
    tmp_path: Path, make_rows: Callable[[int, int], TokenRows]
) -> None:
    root, out = open_store(str(tmp_path / "root")), tmp_path / "out"
    commit_splits(root, make_rows(3, 0), ["train"], ["codebook"])
    pipe, caches = subprocess.PIPE, iter("abc")

    def export() -> list[ReleaseSplit]:
        return export_release(root, "ds", out, ShardCache(tmp_path / "c", 1), overwrite=True)

    def left() -> list[str]:
        return [path.name for path in out.iterdir() if path.name.startswith(".")]

    def midway() -> subprocess.Popen[str]:
        places = root.url, str(out), str(tmp_path / next(caches))
        command = [sys.executable, "-c", _EXPORTER, *places]
        process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "midway\n"
        return process

    with midway() as killed:
        killed.kill()
    (of_killed,) = left()
    with midway() as living:
        (of_living,) = left()
        assert of_living != of_killed
        with pytest.raises(StoreError, match="another process exports into"):
            export()
        assert left() == [of_living]
        living.communicate("\n" * 9)
    assert living.returncode == 0
    assert left() == []
    assert len(export()) == 1


@pytest.mark.parametrize(
    "text",
    ["[", "[]", '{"0": [1]}', '{"0": [1], "1": [0, 1]}', '{"0": [1], "1": [2]}',
     '{"0": [], "1": []}', '{"0": [0.5], "1": [0.5]}', '{"0": [1], "1": [0], "2": [0]}'],
)  # fmt: skip
def test_bad_synonyms_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "synonyms.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"synonyms\.json"):
        read_synonyms(path, 2)
