"""Fine-grained datasets in the layouts that they ship in, written small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from services.errors import FormatError, InvalidInputError, NotFoundError, SeitError
from services.pictures import list_pictures

LABELS = [3, 1, 2, 1, 3, 2, 1]  # of pictures 1 to 7, classes 1 to 3


def picture(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return path.name


def flowers(folder: Path, **sets: list[int]) -> Path:
    for number in range(1, len(LABELS) + 1):
        picture(folder / "jpg" / f"image_{number:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([LABELS], np.uint8)})
    chosen = {"trnid": [1, 2, 3], "valid": [4, 5], "tstid": [6, 7], **sets}
    savemat(folder / "setid.mat", {name: np.array([ids]) for name, ids in chosen.items()})
    return folder


def annotations(names: list[str], classes: list[int]) -> dict[str, Any]:
    kind = [("bbox_x1", object), ("class", object), ("fname", object)]
    rows = np.zeros((1, len(names)), dtype=kind)
    for at, (name, number) in enumerate(zip(names, classes, strict=True)):
        rows[0, at] = (np.array([[1]]), np.array([[number]]), name)
    return {"annotations": rows}


def cars(folder: Path, with_labels: str = "devkit") -> Path:
    (folder / "devkit").mkdir(parents=True)
    train = [picture(folder / "cars_train" / f"{n:05d}.jpg") for n in range(1, 5)]
    test = [picture(folder / "cars_test" / f"{n:05d}.jpg") for n in range(1, 3)]
    names = np.array(["Audi TT 2012", "BMW M3 2010"], dtype=object)[None]
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    savemat(folder / "devkit" / "cars_train_annos.mat", annotations(train, [2, 1, 2, 1]))
    if with_labels:
        file = folder / with_labels / "cars_test_annos_withlabels.mat"
        savemat(file, annotations(test, [1, 2]))
    return folder


def inaturalist(folder: Path, year: int = 2018, **changes: Any) -> Path:
    """Categories are numbered with gaps, as they may be."""
    categories = [{"id": 40, "name": "Parus major"}, {"id": 7, "name": "Bellis perennis"}]
    for split, count in (("train", 4), ("val", 2)):
        images, labels = [], []
        for number in range(count):
            name = f"train_val{year}/Aves/{number % 2}/{split}{number}.jpg"
            picture(folder / name)
            images.append({"id": 100 + number, "file_name": name})
            labels.append({"image_id": 100 + number, "category_id": (40, 7)[number % 2]})
        content = {"images": images, "annotations": labels, "categories": categories, **changes}
        (folder / f"{split}{year}.json").write_text(json.dumps(content))
    return folder


def listed(folder: Path) -> dict[str, list[tuple[str, int]]]:
    found = list_pictures(folder)
    for pictures in found.splits.values():
        for one in pictures:
            assert one.path == folder / one.key
            assert one.path.is_file()
    return {name: sorted((p.key, p.label) for p in some) for name, some in found.splits.items()}


def test_flowers(tmp_path: Path) -> None:
    folder = flowers(tmp_path)
    assert list_pictures(folder).classes == ("001", "002", "003")
    wanted = {"train": [1, 2, 3, 4, 5], "validation": [6, 7]}  # as DeiT trains: both first parts
    assert listed(folder) == {
        split: [(f"jpg/image_{n:05d}.jpg", LABELS[n - 1] - 1) for n in numbers]
        for split, numbers in wanted.items()
    }


@pytest.mark.parametrize("place", ["devkit", "."])
def test_cars(place: str, tmp_path: Path) -> None:
    folder = cars(tmp_path, place)
    assert list_pictures(folder).classes == ("Audi TT 2012", "BMW M3 2010")
    assert listed(folder) == {
        "train": [(f"cars_train/{n:05d}.jpg", label) for n, label in enumerate((1, 0, 1, 0), 1)],
        "validation": [("cars_test/00001.jpg", 0), ("cars_test/00002.jpg", 1)],
    }


@pytest.mark.parametrize("year", [2018, 2019])
def test_inaturalist(year: int, tmp_path: Path) -> None:
    folder = inaturalist(tmp_path, year)
    assert list_pictures(folder).classes == ("Bellis perennis", "Parus major")
    found = listed(folder)
    assert len(found["train"]) == 4
    assert found["validation"] == [
        (f"train_val{year}/Aves/0/val0.jpg", 1),
        (f"train_val{year}/Aves/1/val1.jpg", 0),
    ]


def test_descriptions_that_do_not_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="listed twice, for train and for train"):
        list_pictures(flowers(tmp_path / "twice", valid=[3, 4]))
    with pytest.raises(InvalidInputError, match="listed twice, for train and for validation"):
        list_pictures(flowers(tmp_path / "both", tstid=[3, 6]))
    with pytest.raises(FormatError, match=r"outside of 1\.\.7"):
        list_pictures(flowers(tmp_path / "far", tstid=[6, 8]))
    gone = flowers(tmp_path / "gone")
    (gone / "jpg" / "image_00001.jpg").unlink()
    with pytest.raises(NotFoundError, match=r"image_00001\.jpg is missing"):
        list_pictures(gone)
    with pytest.raises(NotFoundError, match=r"lacks cars_test_annos_withlabels\.mat"):
        list_pictures(cars(tmp_path / "cars", ""))
    out = [{"id": 100, "file_name": "../../etc/passwd"}]
    with pytest.raises(FormatError, match="outside of the folder"):
        list_pictures(inaturalist(tmp_path / "out", images=out))
    with pytest.raises(FormatError, match="COCO"):
        list_pictures(inaturalist(tmp_path / "unlike", annotations=[]))
    deep = inaturalist(tmp_path / "deep")
    (deep / "train2018.json").write_bytes(b"[" * 100_000)
    with pytest.raises(FormatError, match="is not JSON"):
        list_pictures(deep)
    two = inaturalist(inaturalist(tmp_path / "two", 2018), 2019)
    with pytest.raises(InvalidInputError, match="2018, 2019"):
        list_pictures(two)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), name=st.sampled_from(["imagelabels.mat", "setid.mat", "train2018.json"]))
def test_damaged_descriptions_give_errors_of_ours_or_what_they_said_before(
    data: st.DataObject, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A cut in what pads a file's end loses nothing."""
    folder = tmp_path_factory.mktemp("damaged")
    (inaturalist if name.endswith("json") else flowers)(folder)
    before, whole = listed(folder), (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    try:
        found = listed(folder)
    except SeitError:
        return
    assert found == before
