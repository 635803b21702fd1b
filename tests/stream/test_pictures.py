"""Streams of pictures: the plan's order on any number of workers, positions, damaged files."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from services.errors import CursorMismatchError, InvalidInputError
from services.pictures import list_pictures, read_picture, split
from services.plan.epoch import OrderSpec
from services.stream.batch import StreamBatch
from services.stream.pictures import PictureSet, PictureStream, picture_splits

SIZE = (6, 4)
ORDER = OrderSpec(seed=3, global_batch_rows=8, block_rows=2, lanes=2, window_shards=1)
COUNT = 27  # pictures: three full steps of 8 rows, and 3 rows of a fourth


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0)
    for number in range(COUNT):
        path = tmp_path / "pictures" / f"class{number % 3}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(256, size=(9, 7, 3), dtype=np.uint8)).save(path)
    return tmp_path / "pictures"


def make_set(folder: Path, seed: int = 0) -> PictureSet:
    return PictureSet("train", picture_splits(list_pictures(folder).splits, 0, seed)["train"], SIZE)


def same(one: StreamBatch, two: StreamBatch) -> bool:
    tensors = ("inputs", "label", "label_b", "mix", "weight")
    return (
        (one.step, one.epoch) == (two.step, two.epoch)
        and bool((one.rows == two.rows).all())
        and all(torch.equal(getattr(one, name), getattr(two, name)) for name in tensors)
    )


def test_each_picture_once_an_epoch_in_another_order(folder: Path) -> None:
    pictures = make_set(folder)
    batches = list(PictureStream(pictures, ORDER, epochs=2))
    assert [batch.step for batch in batches] == list(range(8))
    orders = []
    for epoch in range(2):
        rows = np.concatenate([batch.rows for batch in batches if batch.epoch == epoch])
        assert len(rows) == 32
        assert sorted(rows[rows >= 0].tolist()) == list(range(COUNT))
        orders.append(rows.tolist())
    assert orders[0] != orders[1]
    assert all(torch.equal(b.weight, torch.from_numpy(b.rows >= 0).float()) for b in batches)


def test_rows_hold_their_picture_and_its_label(folder: Path) -> None:
    listed = picture_splits(list_pictures(folder).splits, 0, seed=0)["train"]
    for batch in PictureStream(make_set(folder), ORDER):
        assert batch.inputs.dtype == torch.uint8
        for row, pixels, label in zip(batch.rows, batch.inputs, batch.label, strict=True):
            if row < 0:
                assert not pixels.any()
                continue
            assert np.array_equal(pixels.numpy(), read_picture(listed[row].path, *SIZE))
            assert int(label) == listed[row].label


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("world", [2, 4])
def test_workers_share_the_same_steps(folder: Path, world: int, sequential: bool) -> None:
    pictures = make_set(folder)
    alone = list(PictureStream(pictures, ORDER, sequential=sequential))
    shares = [
        list(PictureStream(pictures, ORDER, rank=rank, world=world, sequential=sequential))
        for rank in range(world)
    ]
    for step, whole in enumerate(alone):
        parts = [share[step] for share in shares]
        assert np.array_equal(whole.rows, np.concatenate([part.rows for part in parts]))
        assert torch.equal(whole.inputs, torch.cat([part.inputs for part in parts]))


def test_a_position_goes_on_with_the_same_batches(folder: Path) -> None:
    whole = PictureStream(make_set(folder), ORDER, epochs=2)
    batches = list(whole)
    for step in range(len(batches) + 1):
        rest = list(PictureStream(make_set(folder), ORDER, epochs=2, saved=whole.cursor(step)))
        assert len(rest) == len(batches) - step
        assert all(same(*pair) for pair in zip(rest, batches[step:], strict=True))


def test_validation_reads_rows_in_order(folder: Path) -> None:
    batches = list(PictureStream(make_set(folder), ORDER, sequential=True))
    rows = np.concatenate([batch.rows for batch in batches])
    assert rows.tolist() == [*range(COUNT), *[-1] * 5]


def test_a_position_of_other_pictures_is_refused(folder: Path) -> None:
    saved = PictureStream(make_set(folder), ORDER).cursor(1)
    with pytest.raises(CursorMismatchError, match="manifest_digest"):
        PictureStream(make_set(folder, seed=1), ORDER, saved=saved)
    (folder / "class0" / "000.png").unlink()
    with pytest.raises(CursorMismatchError, match="manifest_digest"):
        PictureStream(make_set(folder), ORDER, saved=saved)


def test_splits_are_those_of_ingest_whatever_the_listing(folder: Path) -> None:
    found = list_pictures(folder).splits["train"]
    splits = picture_splits({"train": found}, 0.2, seed=5)
    train, validation = split(found, 0.2, 5)
    assert {p.key for p in splits["train"]} == {p.key for p in train}
    assert {p.key for p in splits["validation"]} == {p.key for p in validation}
    assert picture_splits({"train": found[::-1]}, 0.2, seed=5) == splits
    assert [p.key for p in splits["train"]] != [p.key for p in train]  # classes are mixed
    own = {"train": found[:20], "validation": found[20:]}
    assert {k: set(v) for k, v in picture_splits(own, 0.5, 0).items()} == {
        k: set(v) for k, v in own.items()
    }


def test_a_damaged_picture_is_left_out_and_told_once(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.pictures.MAX_UNREADABLE_SHARE", 0.05)
    damaged = folder / "class1" / "004.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    pictures = make_set(folder)
    with caplog.at_level(logging.WARNING):
        batches = list(PictureStream(pictures, ORDER, epochs=2))
    for epoch in range(2):
        rows = np.concatenate([batch.rows for batch in batches if batch.epoch == epoch])
        (row,) = pictures.unreadable
        assert sorted(rows[rows >= 0].tolist()) == [r for r in range(COUNT) if r != row]
    assert sum(float(batch.weight.sum()) for batch in batches) == 2 * (COUNT - 1)
    assert len([r for r in caplog.records if "004.png" in r.message]) == 1


def test_too_many_damaged_pictures_stop_the_run(folder: Path) -> None:
    (folder / "class1" / "004.png").write_bytes(b"no picture")
    with pytest.raises(InvalidInputError, match=r"1 of 27 pictures .* more than 1%.*004\.png"):
        list(PictureStream(make_set(folder), ORDER))
