"""The scenes that segmentation is tried on: what stands on them, and that splits share nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.errors import InvalidInputError
from services.masks import check_sample, list_masked
from trainers.scenes import ScenesConfig, main, write_scenes

pytest.importorskip("skimage", reason="scikit-image's photographs are an extra: scenes")


def test_scenes_are_pairs_that_ingest_reads(tmp_path: Path) -> None:
    config = ScenesConfig(tmp_path / "scenes", training=12, validation=6, side=48, digits=4)
    folder = write_scenes(config)
    found = list_masked(folder / "images", folder / "annotations")
    check_sample(found)
    assert found.classes.names == ("background", "0", "1", "2", "3")
    assert {name: len(part) for name, part in found.splits.items()} == {
        "train": 12,
        "validation": 6,
    }
    seen: set[int] = set()
    for path in found.masks.values():
        mask = np.asarray(Image.open(path))
        assert mask.shape == (48, 48)
        seen |= set(np.unique(mask).tolist())
        assert 0.03 < (mask > 0).mean() < 0.5
        digit = np.asarray(Image.open(str(path).replace("annotations", "images")))
        assert digit[mask > 0].mean() > digit[mask == 0].mean()  # light on dark
    assert seen == {0, 1, 2, 3, 4}

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    write_scenes(config)  # again: nothing is touched
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")} == before
    other = write_scenes(replace(config, out=tmp_path / "other", seed=1))
    name = "images/training/scenes/00000.png"
    assert (folder / name).read_bytes() != (other / name).read_bytes()


@pytest.mark.parametrize("argv", [["--digits", "1"], ["--training", "0"], ["--side", "8"]])
def test_scenes_that_cannot_be_are_refused(argv: list[str], tmp_path: Path) -> None:
    with pytest.raises((InvalidInputError, SystemExit)):
        raise SystemExit(main([*argv, "--out", str(tmp_path / "scenes")]))
    assert not (tmp_path / "scenes").exists()
