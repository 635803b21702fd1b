"""ObjectNet's own mappings, written small but for ImageNet's thousand classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.errors import FormatError, InvalidInputError, NotFoundError, SeitError
from trainers.objectnet import locate, shipped_map

KNOWN = tuple(f"n{number:08d}" for number in range(1000))  # as folders of ImageNet sort


def write(folder: Path, first: int = 0, **changes: Any) -> Path:
    """The dataset's folder. Places among the sorted folders are shuffled against 2012 numbers."""
    mappings = folder / "mappings"
    mappings.mkdir(parents=True)
    (folder / "images" / "alarm_clock").mkdir(parents=True)
    order = np.random.default_rng(0).permutation(1000)  # 2012 number of each place
    lines = [""] * 1000
    for place, number in enumerate(order.tolist()):
        lines[number] = f"label of {KNOWN[place]}, synonym"
    content = {
        "folder_to_objectnet_label.json": {
            "alarm_clock": "Alarm clock",
            "air_freshener": "Air freshener",
            "chair": "Chair",
        },
        "objectnet_to_imagenet_1k.json": {
            "Alarm clock": f"label of {KNOWN[7]}, synonym; label of {KNOWN[3]}, synonym",
            "Chair": f"label of {KNOWN[999]}, synonym",
        },
        "pytorch_to_imagenet_2012_id.json": {
            str(place): number + first for place, number in enumerate(order.tolist())
        },
        **changes,
    }
    for name, value in content.items():
        (mappings / name).write_text(json.dumps(value))
    (mappings / "imagenet_to_label_2012_v2").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("first", [0, 1])
def test_folders_lead_to_the_models_classes(first: int, tmp_path: Path) -> None:
    folder = write(tmp_path / "objectnet-1.0", first)
    for given in (folder, folder / "images"):
        pictures, mappings = locate(given)
        assert pictures == folder / "images"
        assert mappings is not None
        assert shipped_map(mappings, KNOWN) == {
            "alarm_clock": [KNOWN[7], KNOWN[3]],
            "chair": [KNOWN[999]],
        }


def test_a_folder_without_mappings_has_none(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert locate(tmp_path / "images") == (tmp_path / "images", None)
    assert locate(tmp_path) == (tmp_path, None)


def test_mappings_that_do_not_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="2 classes"):
        shipped_map(write(tmp_path / "few") / "mappings", ("cat", "dog"))
    with pytest.raises(InvalidInputError, match="order of their folder names"):
        shipped_map(write(tmp_path / "order") / "mappings", KNOWN[::-1])
    strange = {"objectnet_to_imagenet_1k.json": {"Chair": "throne"}}
    with pytest.raises(FormatError, match="do not agree, 'throne'"):
        shipped_map(write(tmp_path / "strange", **strange) / "mappings", KNOWN)
    with pytest.raises(FormatError, match="not the file that ObjectNet ships"):
        shipped_map(
            write(tmp_path / "list", **{"folder_to_objectnet_label.json": ["Chair"]}) / "mappings",
            KNOWN,
        )
    gone = write(tmp_path / "gone")
    (gone / "mappings" / "imagenet_to_label_2012_v2").unlink()
    with pytest.raises(NotFoundError, match="imagenet_to_label_2012_v2 is missing"):
        shipped_map(gone / "mappings", KNOWN)


@pytest.mark.parametrize("seed", range(8))
def test_damaged_mappings_give_errors_of_ours(seed: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(seed)
    folder = write(tmp_path / "objectnet")
    file = sorted((folder / "mappings").iterdir())[seed % 4]
    whole = file.read_bytes()
    file.write_bytes(whole[: int(draw.integers(0, len(whole) - 2))])
    with pytest.raises(SeitError):
        shipped_map(folder / "mappings", KNOWN)
