"""Pictures with masks to shards, and from there through Ray's pipeline: on a real Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from services.augment.recipe import RECIPES
from services.augment.tokenadapt import TokenAdapt, TokenAdaptConfig
from services.errors import InvalidInputError
from services.masks import decode_mask, list_masked, read_mask
from services.plan.epoch import OrderSpec
from services.shards.cache import ShardCache
from services.shards.manifest import list_versions, load_manifest
from services.shards.orphans import find_orphans
from services.shards.reader import DatasetReader
from services.shards.store import open_store
from services.stream.ingest import IngestConfig, ingest
from services.stream.loader import Stream
from services.stream.pool import Pool
from services.stream.request import RowsRequest, StreamRequest
from services.stream.sources import pinned
from services.types import IGNORED

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("local_ray")]


def pairs(folder: Path, training: int = 22, validation: int = 6) -> Path:
    """Pictures and masks of many sizes, as ADE-20k lays them out, with 4 classes."""
    rng = np.random.default_rng(1)
    for split, count in (("training", training), ("validation", validation)):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            height, width = rng.integers(9, 60, 2)
            colours = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
            values = rng.integers(0, 5, (height, width)).astype(np.uint8)
            Image.fromarray(colours).save(folder / "images" / split / f"{number}.jpg")
            Image.fromarray(values).save(folder / "annotations" / split / f"{number}.png")
    lines = ["Idx\tName", *(f"{number}\tthing {number}" for number in range(1, 5))]
    (folder / "objectInfo150.txt").write_text("\n".join(lines))
    return folder


def config(tmp_path: Path, tokenizer: Path, **changes: object) -> IngestConfig:
    made = IngestConfig(
        images=str(tmp_path / "ade" / "images"),
        masks=str(tmp_path / "ade" / "annotations"),
        root=str(tmp_path / "data"),
        dataset="ade",
        tokenizer=str(tokenizer),
        rows_per_shard=10,
        batch=4,
        actors=1,
        cpus=0.5,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_masks_stand_with_their_tokens_and_stream_alike_with_ray_and_without(
    tmp_path: Path, tokenizer: Path
) -> None:
    folder = pairs(tmp_path / "ade")
    report = ingest(config(tmp_path, tokenizer))
    assert (report.rows, report.shards, list(report.skipped)) == (28, 4, [])
    assert report.committed.manifest.classes == [f"thing {number}" for number in range(1, 5)]
    root = open_store(str(tmp_path / "data"))
    listed = list_masked(folder / "images", folder / "annotations")
    masks: dict[str, np.ndarray] = {}
    for split, rows in (("train", 22), ("validation", 6)):
        cache = ShardCache(tmp_path / "cache", 10**8)
        reader = DatasetReader(root, "ade", split=split, cache=cache)
        assert len(reader) == rows
        for number, count in enumerate(reader.shard_rows.tolist()):
            shard, inside = np.full(count, number), np.arange(count)
            keys = reader.keys(shard, inside)
            for key, data in zip(keys, reader.column("mask", shard, inside), strict=True):
                masks[key] = decode_mask(data, 16, 16, key)
                picture = folder / "images" / key
                wanted = read_mask(listed.masks[key], picture, 16, 16, listed.classes)
                assert (masks[key] == wanted).all()
    assert len(masks) == 28
    assert {int(v) for mask in masks.values() for v in np.unique(mask)} == {0, 1, 2, 3, IGNORED}

    adapt = TokenAdapt(TokenAdaptConfig((4, 4), (4, 4), 8, 12, dim=16, heads=2, mlp=32))
    (tmp_path / "adapt.safetensors").write_bytes(adapt.to_bytes())
    order = OrderSpec(seed=1, global_batch_rows=8, block_rows=4, lanes=1, window_shards=2)
    for name in ("segment", "eval"):
        rows_request = RowsRequest(
            sources=(pinned(root, "ade", "train"),),
            order=order,
            cache_dir=str(tmp_path / "cache"),
            cache_bytes=10**8,
            masks=True,
        )
        recipe = RECIPES[name](report.committed.spec, (4, 4))
        request = StreamRequest(
            rows_request, recipe, str(tmp_path / "adapt.safetensors") if name == "segment" else ""
        )
        pool = Pool(actors=1, cpus=0.5)
        with_ray = list(Stream(request, stop=7, pool=pool))
        without = list(Stream(request, stop=7))
        for ours, theirs in zip(with_ray, without, strict=True):
            assert ours.mask is not None
            assert theirs.mask is not None
            assert torch.equal(ours.mask, theirs.mask)
            assert torch.equal(ours.inputs, theirs.inputs)


@pytest.mark.slow  # as pictures, which CI looks at
def test_a_few_faulty_masks_are_skipped_and_listed(tmp_path: Path, tokenizer: Path) -> None:
    folder = pairs(tmp_path / "ade", training=220) / "annotations" / "training"
    Image.fromarray(np.full((3, 3), 1, np.uint8)).save(folder / "7.png")
    (folder / "8.png").write_bytes(b"no mask")
    report = ingest(config(tmp_path, tokenizer, rows_per_shard=64))
    assert report.rows == 224
    skipped = {skip.path: skip.reason for skip in report.skipped}
    assert set(skipped) == {"training/7.jpg", "training/8.jpg"}
    assert "the mask is 3x3 pixels" in skipped["training/7.jpg"]
    assert "not a readable mask" in skipped["training/8.jpg"]


@pytest.mark.slow
def test_many_faulty_masks_stop_the_job_and_leave_nothing_that_is_read(
    tmp_path: Path, tokenizer: Path
) -> None:
    folder = pairs(tmp_path / "ade") / "annotations" / "training"
    for number in (3, 4):
        (folder / f"{number}.png").write_bytes(b"no mask")
    with pytest.raises(InvalidInputError, match=r"of 28 pictures cannot be read, more than 1%"):
        ingest(config(tmp_path, tokenizer))
    root = open_store(str(tmp_path / "data"))
    assert list_versions(root, "ade") == []
    # Shards may be another run's, too: they go by their age.
    orphans = find_orphans(root, "ade", min_age_seconds=0)
    assert {f"ade/{file.path}" for file in orphans} == set(root.list())


def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, tokenizer: Path
) -> None:
    folder = pairs(tmp_path / "ade")
    with pytest.raises(InvalidInputError, match="mask_classes"):
        config(tmp_path, tokenizer, masks="", mask_classes="names.txt")
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\n")
    with pytest.raises(InvalidInputError, match="faulty; the job did not start"):
        ingest(config(tmp_path, tokenizer, mask_classes=str(names)))
    (folder / "annotations/validation/3.png").unlink()
    with pytest.raises(InvalidInputError, match=r"1 of 28 pictures have no mask.*validation/3.jpg"):
        ingest(config(tmp_path, tokenizer))
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_a_version_has_masks_or_none(tmp_path: Path, tokenizer: Path) -> None:
    pairs(tmp_path / "ade", 4, 2)
    made = config(tmp_path, tokenizer)
    ingest(made)
    ingest(replace(made, mode="append"))
    root = open_store(made.root)
    manifest = load_manifest(root, "ade").manifest
    assert all(shard.columns for split in manifest.splits for shard in split.shards)
    for number in range(1, 5):
        (tmp_path / "plain" / f"thing {number}").mkdir(parents=True)
        picture = Image.new("RGB", (20, 20), (number, 0, 0))
        picture.save(tmp_path / "plain" / f"thing {number}" / "1.png")
    plain = replace(made, images=str(tmp_path / "plain"), masks="", mode="append")
    with pytest.raises(InvalidInputError, match="has masks, the pictures to append have no masks"):
        ingest(plain)
    assert list_versions(root, "ade") == [1, 2]
