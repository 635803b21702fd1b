"""Pictures to shards on a real Ray: what is written, what is refused, what a failure leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from services.errors import FormatError, InvalidInputError, NotFoundError
from services.pictures import read_picture
from services.shards.cache import ShardCache
from services.shards.manifest import (
    commit,
    list_versions,
    load_manifest,
    named_files,
    put_asset,
)
from services.shards.orphans import find_orphans
from services.shards.reader import DatasetReader
from services.shards.store import open_store
from services.stream.ingest import IngestConfig, ingest
from services.tokens.tokenizer import load_tokenizer, save_tokenizer
from services.tokens.vitvqgan import ViTSize, ViTVQGAN, ViTVQGANConfig

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("local_ray")]


def pictures(folder: Path, classes: int = 2, each: int = 15) -> Path:
    rng = np.random.default_rng(1)
    for label in range(classes):
        place = folder / f"class{label}"
        place.mkdir(parents=True)
        for number in range(each):
            shape = (*rng.integers(9, 40, 2), 3)
            Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(
                place / f"{number}.png"
            )
    return folder


def config(tmp_path: Path, weights: Path, **changes: object) -> IngestConfig:
    made = IngestConfig(
        images=str(tmp_path / "images"),
        root=str(tmp_path / "data"),
        dataset="set",
        tokenizer=str(weights),
        rows_per_shard=10,
        batch=4,
        actors=1,
        cpus=0.5,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_every_picture_stands_once_as_its_tokens_and_versions_grow(
    tmp_path: Path, tokenizer: Path
) -> None:
    folder = pictures(tmp_path / "images")
    seen: list[tuple[int, int]] = []
    made = config(tmp_path, tokenizer)
    report = ingest(made, lambda _, done, total, unit: seen.append((done, total)))
    assert (report.rows, report.shards, list(report.skipped)) == (30, 4, [])
    assert seen[-1] == (30, 30)
    root, model = open_store(made.root), load_tokenizer(tokenizer)
    found: dict[str, int] = {}
    for split, rows in (("train", 24), ("validation", 6)):
        reader = DatasetReader(root, "set", split=split, cache=ShardCache(tmp_path / "c", 10**8))
        assert len(reader) == rows
        for part in reader.iter_rows():
            for key, label, ids in zip(part.keys, part.labels, part.ids, strict=True):
                found[key] = int(label)
                pixels = torch.from_numpy(read_picture(folder / key, 16, 16)).float()[None] / 255
                assert (model.encode(pixels)[0].numpy() == ids).all()
    assert found == {f"class{c}/{n}.png": c for c in range(2) for n in range(15)}

    with pytest.raises(InvalidInputError, match="--mode append"):
        ingest(made)
    ingest(replace(made, mode="append"))
    ingest(replace(made, mode="replace"))
    totals = [
        sum(s.rows for p in load_manifest(root, "set", v).manifest.splits for s in p.shards)
        for v in list_versions(root, "set")
    ]
    assert totals == [30, 60, 30]


def test_a_few_unreadable_pictures_are_skipped_and_listed(tmp_path: Path, tokenizer: Path) -> None:
    folder = pictures(tmp_path / "images", each=60)
    (folder / "class0" / "7.png").write_bytes(b"no picture")
    report = ingest(config(tmp_path, tokenizer, rows_per_shard=64))
    assert report.rows == 119
    assert [skip.path for skip in report.skipped] == ["class0/7.png"]
    manifest = load_manifest(open_store(str(tmp_path / "data")), "set").manifest
    assert [skip.path for skip in manifest.skipped] == ["class0/7.png"]


def test_many_unreadable_pictures_stop_the_job_and_commit_nothing(
    tmp_path: Path, tokenizer: Path
) -> None:
    folder = pictures(tmp_path / "images")
    for number in (3, 4):
        (folder / "class1" / f"{number}.png").write_bytes(b"no picture")
    made, root = config(tmp_path, tokenizer), open_store(str(tmp_path / "data"))
    with pytest.raises(InvalidInputError, match=r"of 30 pictures cannot be read, more than 1%"):
        ingest(made)
    assert list_versions(root, "set") == []
    # Shards stay, as another run may have written the same: this one's are found by their age.
    left = [path.removeprefix("set/") for path in root.list()]
    assert all(path.startswith("shards/") for path in left)
    if left:
        assert [one.path for one in find_orphans(root, "set", min_age_seconds=0)] == left
    assert ingest(replace(made, max_unreadable=0.5)).rows == 28
    assert set(left) <= named_files(load_manifest(root, "set").manifest)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"images": "/nowhere"}, NotFoundError, "no folder /nowhere"),
        ({"tokenizer": "/nowhere.safetensors"}, NotFoundError, "nowhere.safetensors"),
        ({"mode": "append"}, InvalidInputError, "to append to"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path: Path, tokenizer: Path, changes: dict[str, str], error: type[Exception], says: str
) -> None:
    pictures(tmp_path / "images", each=2)
    with pytest.raises(error, match=says):
        ingest(config(tmp_path, tokenizer, **changes))
    assert not (tmp_path / "data").exists()


def test_an_empty_class_a_bad_name_and_a_newer_manifest_are_refused(
    tmp_path: Path, tokenizer: Path
) -> None:
    folder = pictures(tmp_path / "images", each=2)
    with pytest.raises(InvalidInputError, match="dataset"):
        config(tmp_path, tokenizer, dataset="../set")
    (folder / "class9").mkdir()
    with pytest.raises(InvalidInputError, match="class9 holds no picture"):
        ingest(config(tmp_path, tokenizer))
    (folder / "class9").rmdir()
    versions = tmp_path / "data" / "set" / "versions"
    versions.mkdir(parents=True)
    (versions / "00000001.json").write_text('{"format": 3}')
    with pytest.raises(FormatError, match="found format 3, this program reads 1 and 2: upgrade"):
        ingest(config(tmp_path, tokenizer, mode="replace"))


def test_another_tokenizer_cannot_add_to_a_dataset(tmp_path: Path, tokenizer: Path) -> None:
    pictures(tmp_path / "images", each=3)
    ingest(config(tmp_path, tokenizer))
    size = ViTSize(16, 1, 1, 32)
    other = tmp_path / "other.safetensors"
    other.write_bytes(save_tokenizer(ViTVQGAN(ViTVQGANConfig((16, 16), 8, size, size, 12, 8, 16))))
    with pytest.raises(InvalidInputError, match="could not be told apart"):
        ingest(config(tmp_path, other, mode="append"))
    torch.manual_seed(5)
    trained_anew = type(load_tokenizer(tokenizer))(load_tokenizer(tokenizer).config)
    other.write_bytes(save_tokenizer(trained_anew))
    for mode in ("append", "replace"):
        with pytest.raises(InvalidInputError, match="same id would mean two things"):
            ingest(config(tmp_path, other, mode=mode))
    assert list_versions(open_store(str(tmp_path / "data")), "set") == [1]


def test_an_append_is_refused_where_the_codebook_changed_meanwhile(
    tmp_path: Path, tokenizer: Path
) -> None:
    """Another writer commits while the pictures are read: its version is what would be added to."""
    pictures(tmp_path / "images", each=3)
    made, root = config(tmp_path, tokenizer), open_store(str(tmp_path / "data"))
    ingest(made)
    other = load_tokenizer(tokenizer).codebook
    changed = replace(other, weight=other.weight + 1).to_bytes()
    versions = [1]

    def meanwhile(*_: object) -> None:
        if versions == [1]:
            base = load_manifest(root, "set")
            kept = [asset for asset in base.manifest.assets if asset.kind != "codebook"]
            assets = [put_asset(root, "set", "codebook", changed), *kept]
            versions.append(
                commit(
                    root, replace(base.manifest, assets=assets, parent=base.digest, writer="")
                ).manifest.version
            )

    with pytest.raises(InvalidInputError, match="version 2 has the codebook"):
        ingest(replace(made, mode="append"), meanwhile)
    assert list_versions(root, "set") == versions == [1, 2]
