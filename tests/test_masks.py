"""Folders of pictures and masks: what is found, what is read, and what is refused by name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from services.errors import FormatError, InvalidInputError, NotFoundError
from services.masks import (
    check_sample,
    decode_mask,
    encode_mask,
    list_masked,
    read_classes,
    read_mask,
)
from services.pictures import Picture
from services.types import IGNORED

TABLE = "Idx\tRatio\tTrain\tVal\tName\n1\t0.5\t3\t1\twall\n2 \t0.3\t2\t1\tfloor, flooring \n"


def picture(path: Path, size: tuple[int, int] = (9, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 90, 200)).save(path)
    return path


def mask(path: Path, values: np.ndarray | None = None, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    found = np.zeros((6, 9), np.uint8) if values is None else values
    image = Image.fromarray(found)
    (image.convert(mode) if mode else image).save(path)
    return path


def ade(root: Path) -> Path:
    """A folder as ADE-20k ships it."""
    for split, name in (("training", "ADE_train"), ("validation", "ADE_val")):
        for number in range(3):
            picture(root / "images" / split / f"{name}_{number:08d}.jpg")
            mask(root / "annotations" / split / f"{name}_{number:08d}.png")
    (root / "objectInfo150.txt").write_text(TABLE)
    return root


def test_ade20k_is_read_as_it_ships(tmp_path: Path) -> None:
    root = ade(tmp_path)
    found = list_masked(root / "images", root / "annotations")
    assert found.classes.names == ("wall", "floor, flooring")
    assert {name: len(part) for name, part in found.splits.items()} == {
        "train": 3,
        "validation": 3,
    }
    key = "training/ADE_train_00000001.jpg"
    assert found.splits["train"][1] == Picture(root / "images" / key, -1, key)
    assert found.masks[key] == root / "annotations/training/ADE_train_00000001.png"
    # 0 is "other objects" there, and has no class; classes count from 0.
    values = np.array([[0, 1, 2], [255, 1, 1]], np.uint8).repeat(3, 0).repeat(3, 1)
    place = mask(root / "annotations" / "x.png", values)
    read = read_mask(place, root / "images" / key, 2, 3, found.classes)
    assert read.tolist() == [[IGNORED, 0, 1], [IGNORED, 0, 0]]


def test_any_pair_of_folders_will_do(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.jpeg", "b/c/3.webp"):
        picture(tmp_path / "photos" / name)
        mask(tmp_path / "truth" / Path(name).with_suffix(".bmp"))
    mask(tmp_path / "truth" / "of_no_picture.png")
    names = tmp_path / "names.txt"
    names.write_text("background\n\nthing\n")
    found = list_masked(tmp_path / "photos", tmp_path / "truth", names)
    assert found.classes.names == ("background", "thing")
    assert [one.key for one in found.splits["train"]] == ["a/1.png", "a/2.jpeg", "b/c/3.webp"]
    assert found.masks["b/c/3.webp"] == tmp_path / "truth/b/c/3.bmp"


def test_what_is_missing_or_unclear_is_named(tmp_path: Path) -> None:
    root = ade(tmp_path)
    images, masks = root / "images", root / "annotations"
    with pytest.raises(NotFoundError, match="folder of masks"):
        list_masked(images, root / "nowhere")
    with pytest.raises(NotFoundError, match="folder of pictures"):
        list_masked(root / "nowhere", masks)
    (masks / "training/ADE_train_00000002.png").rename(masks / "training/other.png")
    with pytest.raises(InvalidInputError, match=r"1 of 6 .* have no mask.*ADE_train_00000002"):
        list_masked(images, masks)
    picture(masks / "training/ADE_train_00000002.jpg")
    with pytest.raises(InvalidInputError, match=r"lossy mask.*ADE_train_00000002"):
        list_masked(images, masks)
    for ending in ("png", "bmp"):
        mask(masks / f"training/ADE_train_00000002.{ending}")
    with pytest.raises(InvalidInputError, match="more than one mask"):
        list_masked(images, masks)
    (images / "train").mkdir()
    picture(images / "train/1.png")
    with pytest.raises(InvalidInputError, match="two folders for the split 'train'"):
        list_masked(images, masks)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (None, NotFoundError, "no file of class names"),
        ("", InvalidInputError, "names 0 classes"),
        ("\n".join(map(str, range(256))), InvalidInputError, "names 256 classes"),
        ("Idx,Name\n1,a\n1,b\n", InvalidInputError, "the value 1 twice"),
        ("Idx,Name\n70000,a\n", InvalidInputError, "the value 70000"),
        ("Idx,Name\none,a\n", InvalidInputError, "line 2"),
        ("Idx\tName\n1\n", InvalidInputError, "line 2"),
    ],
)
def test_files_of_class_names_that_cannot_be_used(
    tmp_path: Path, text: str | None, error: type[Exception], says: str
) -> None:
    if text is not None:
        (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(error, match=says):
        read_classes(tmp_path / "masks")


@pytest.mark.parametrize("mode", ["L", "P", "I"])
def test_ids_are_read_whatever_the_mode(tmp_path: Path, mode: str) -> None:
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    image = picture(tmp_path / "1.jpg")
    values = np.arange(54).reshape(6, 9).astype(np.uint8) % 3
    path = tmp_path / "1.png"
    if mode == "P":  # the palette's colours say nothing
        with_palette = Image.fromarray(values).convert("P")
        with_palette.frombytes(values.tobytes())
        with_palette.putpalette([200, 10, 10] * 256)
        with_palette.save(path)
    else:
        mask(path, values if mode == "L" else values.astype(np.uint16))
    assert (read_mask(path, image, 6, 9, read_classes(tmp_path)) == values).all()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: mask(path, np.zeros((9, 6), np.uint8)), "mask is 9x6 .* its picture 6x9"),
        (lambda path: mask(path, np.full((6, 9), 7, np.uint8)), r"54 pixels .* 7.*0\.\.2, 255"),
        (lambda path: mask(path, mode="RGB"), "mode RGB"),
        (lambda path: path.write_bytes(b"no mask"), "not a readable mask"),
        (lambda path: path.write_bytes(path.read_bytes()[:40]), "not a readable mask"),
        (lambda path: path.unlink(), "cannot be read"),
    ],
)  # fmt: skip
def test_a_mask_that_cannot_be_used_says_why(tmp_path: Path, spoil: object, says: str) -> None:
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    image, path = picture(tmp_path / "1.jpg"), mask(tmp_path / "1.png")
    spoil(path)  # type: ignore[operator]
    with pytest.raises(InvalidInputError, match=says) as told:
        read_mask(path, image, 6, 9, read_classes(tmp_path))
    assert str(path) in str(told.value)


def test_masks_of_another_kind_are_told_before_anything_begins(tmp_path: Path) -> None:
    root = ade(tmp_path)
    found = list_masked(root / "images", root / "annotations")
    check_sample(found)
    mask(found.masks["validation/ADE_val_00000000.jpg"], np.full((6, 9), 9, np.uint8))
    check_sample(found)  # one of three: the job itself skips and lists it
    mask(found.masks["validation/ADE_val_00000002.jpg"], np.full((6, 9), 9, np.uint8))
    with pytest.raises(InvalidInputError, match=r"2 of the first 3 .*'validation'.*the value 9"):
        check_sample(found)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.integers(1, 256))
def test_what_is_stored_is_what_was_there(height: int, width: int, seed: int, values: int) -> None:
    rng = np.random.default_rng(seed)
    wanted = rng.integers(0, values, (height, width)).astype(np.uint8)
    assert (decode_mask(encode_mask(wanted), height, width, "x") == wanted).all()
    with pytest.raises(FormatError, match=rf"{height}x{width} pixels"):
        decode_mask(encode_mask(wanted), height + 1, width, "x")


def test_what_is_no_stored_mask_is_refused() -> None:
    sink = io.BytesIO()
    Image.new("RGB", (4, 4)).save(sink, "PNG")
    for data in (b"", b"junk", sink.getvalue()):
        with pytest.raises(FormatError, match=r"row 7"):
            decode_mask(data, 4, 4, "row 7")
