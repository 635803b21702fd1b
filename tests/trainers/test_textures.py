"""Crops of photographs: training and validation see different pixels."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.errors import InvalidInputError
from services.pictures import list_pictures
from trainers.textures import PHOTOGRAPHS, TRAIN_SHARE, photographs, write_textures

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("skimage") is None, reason="scikit-image brings the photographs"
)


def test_crops_of_both_splits_come_from_different_parts(tmp_path: Path) -> None:
    folder = write_textures(tmp_path / "t", side=16, train=4, validation=3, seed=5)
    found = list_pictures(folder)
    assert len(found.classes) == len(PHOTOGRAPHS)
    assert {name: len(some) for name, some in found.splits.items()} == {
        "train": 4 * len(PHOTOGRAPHS),
        "validation": 3 * len(PHOTOGRAPHS),
    }
    for name in ("chelsea.png", "coffee.png"):
        photograph = np.asarray(Image.open(photographs() / name).convert("RGB"))
        border = int(photograph.shape[1] * TRAIN_SHARE)
        for split, part in (("train", photograph[:, :border]), ("val", photograph[:, border:])):
            windows = np.lib.stride_tricks.sliding_window_view(part, (16, 16, 3))[:, :, 0]
            for path in sorted((folder / split / Path(name).stem).iterdir()):
                crop = np.asarray(Image.open(path))
                corner = (windows[:, :, 0, 0] == crop[0, 0]).all(-1)
                assert any((windows[y, x] == crop).all() for y, x in np.argwhere(corner))


def test_the_same_arguments_give_the_same_files(tmp_path: Path) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.png")}

    sizes = {"side": 8, "train": 2, "validation": 1}
    one = contents(write_textures(tmp_path / "a", **sizes))
    assert contents(write_textures(tmp_path / "b", **sizes)) == one
    assert contents(write_textures(tmp_path / "a", **sizes)) == one
    assert contents(write_textures(tmp_path / "c", **sizes, seed=1)) != one
    for wrong in ({"side": 0}, {"train": 0}, {"side": 4000}):
        with pytest.raises(InvalidInputError):
            write_textures(tmp_path / "d", **{**sizes, **wrong})
