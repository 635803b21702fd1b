"""Pictures of outlines: told apart by their form alone, whatever their size, place and turn."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from services.errors import InvalidInputError
from services.pictures import list_pictures
from trainers.shapes import OUTLINES, write_shapes


def profile(name: str, bins: int = 20) -> np.ndarray:
    """The share that an outline covers of each of the rings around its centre: no turn or mirror
    changes it."""
    side = 201
    sheet = Image.new("L", (side, side))
    draw = ImageDraw.Draw(sheet)
    for level, outline in zip((1, 0), OUTLINES[name], strict=False):
        draw.polygon([tuple(p) for p in ((outline + 1) * (side - 1) / 2).tolist()], fill=level)
    away = np.hypot(*np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j])
    ring = np.minimum((away * bins).astype(int), bins)
    return np.array([np.asarray(sheet)[ring == number].mean() for number in range(bins)])


def test_each_outline_lies_in_its_circle_and_has_a_form_of_its_own() -> None:
    for outline in OUTLINES.values():
        for polygon in outline:
            assert np.hypot(*polygon.T).max() <= 1.1
    for one, other in combinations(OUTLINES, 2):
        assert np.abs(profile(one) - profile(other)).max() > 0.2, (one, other)


def test_every_picture_shows_its_outline_whole_and_by_contrast(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path, side=48, train=5, validation=3, seed=7)
    found = list_pictures(folder)
    assert found.classes == tuple(sorted(OUTLINES))
    assert {name: len(some) for name, some in found.splits.items()} == {
        "train": 5 * len(OUTLINES),
        "validation": 3 * len(OUTLINES),
    }
    seen = set()
    for picture in (*found.splits["train"], *found.splits["validation"]):
        pixels = np.asarray(Image.open(picture.path).convert("L"), float)
        assert pixels.shape == (48, 48)
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        apart = np.abs(pixels - np.median(edge)) > 35
        assert 0.03 < apart.mean() < 0.75, picture.key  # something is there, and ground is left
        seen.add(pixels.tobytes())
    assert len(seen) == 8 * len(OUTLINES)


def test_the_same_arguments_give_the_same_files(tmp_path: Path) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.png")}

    sizes = {"side": 16, "train": 2, "validation": 1}
    one = contents(write_shapes(tmp_path / "a", **sizes))
    assert contents(write_shapes(tmp_path / "b", **sizes)) == one
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*.png")}
    assert contents(write_shapes(tmp_path / "a", **sizes)) == one
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert contents(write_shapes(tmp_path / "c", **sizes, seed=1)) != one
    # More pictures leave those that there were as they are.
    assert one.items() <= contents(write_shapes(tmp_path / "a", **{**sizes, "train": 3})).items()


@pytest.mark.parametrize("wrong", [{"side": 15}, {"train": 0}, {"validation": 0}])
def test_sizes_that_give_no_picture_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError, match=str(next(iter(wrong.values())))):
        write_shapes(tmp_path / "d", **wrong)
    assert not (tmp_path / "d").exists()
