from __future__ import annotations

import contextlib
import io
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from services import pictures as module
from services.errors import InvalidInputError, NotFoundError
from services.pictures import (
    Picture,
    decode_picture,
    list_pictures,
    open_picture,
    read_picture,
    source_bytes,
    split,
    write_digits,
)


def encoded(mode: str = "RGB", form: str = "PNG", size: tuple[int, int] = (9, 5)) -> bytes:
    """A picture file of a size (width, height)."""
    levels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(levels).convert(mode).save(stream, form)
    return stream.getvalue()


def put(path: Path, data: bytes | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded() if data is None else data)


def test_a_folder_of_classes(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.png", "a/deep/x.webp", "a/notes.txt", "b/.hidden.png"):
        put(tmp_path / name)
    put(tmp_path / ".cache/x.png")
    put(tmp_path / "stray.png")
    folder = list_pictures(tmp_path)
    assert folder.classes == ("a", "b")
    assert folder.splits == {
        "train": [
            Picture(tmp_path / "a/deep/x.webp", 0, "a/deep/x.webp"),
            Picture(tmp_path / "b/1.png", 1, "b/1.png"),
            Picture(tmp_path / "b/2.JPG", 1, "b/2.JPG"),
        ]
    }


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_a_folder_with_splits(tmp_path: Path, name: str) -> None:
    for key in ("train/a/1.png", "train/b/1.png", f"{name}/b/2.png"):
        put(tmp_path / key)
    folder = list_pictures(tmp_path)
    assert folder.classes == ("a", "b")
    assert [picture.key for picture in folder.splits["train"]] == ["train/a/1.png", "train/b/1.png"]
    assert [picture[1:] for picture in folder.splits["validation"]] == [(1, f"{name}/b/2.png")]


def test_val_and_test_are_two_splits(tmp_path: Path) -> None:
    for key in ("train/a/1.png", "val/a/2.png", "test/a/3.png"):
        put(tmp_path / key)
    splits = list_pictures(tmp_path).splits
    assert {name: part[0].key for name, part in splits.items()} == {
        "train": "train/a/1.png",
        "validation": "val/a/2.png",
        "test": "test/a/3.png",
    }
    put(tmp_path / "validation/a/4.png")
    with pytest.raises(InvalidInputError, match="both val and validation"):
        list_pictures(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for key in ("train/1.png", "plane/1.png"):
        put(tmp_path / key)
    assert list_pictures(tmp_path).classes == ("plane", "train")


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        list_pictures(tmp_path / "nowhere")
    put(tmp_path / "1.png")
    with pytest.raises(InvalidInputError, match="no class folder"):
        list_pictures(tmp_path)
    put(tmp_path / "a/1.png")
    put(tmp_path / "empty_one/readme.txt")
    with pytest.raises(InvalidInputError, match="empty_one holds no picture"):
        list_pictures(tmp_path)


def test_an_unknown_class_in_validation(tmp_path: Path) -> None:
    for key in ("train/a/1.png", "val/zebra/2.png"):
        put(tmp_path / key)
    with pytest.raises(InvalidInputError, match="zebra"):
        list_pictures(tmp_path)


def entries(sizes: list[int], root: str = "/x") -> list[Picture]:
    return [
        Picture(Path(root, f"{label}/{index}.png"), label, f"{label}/{index}.png")
        for label, size in enumerate(sizes)
        for index in range(size)
    ]


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.floats(0, 0.99),
    st.integers(0, 2**32),
    st.randoms(),
)
@settings(deadline=None, max_examples=50)
def test_splits_are_stratified_partitions_that_follow_the_keys_alone(
    sizes: list[int], fraction: float, seed: int, random: object
) -> None:
    listed = entries(sizes)
    training, validation = split(listed, fraction, seed)
    assert sorted(training + validation) == sorted(listed)
    assert training == sorted(training, key=listed.index)
    train_of, validation_of = (
        Counter(picture.label for picture in part) for part in (training, validation)
    )
    for label, size in enumerate(sizes):
        assert train_of[label] >= 1
        assert abs(validation_of[label] - size * fraction) <= 1
        assert validation_of[label] >= (1 if fraction and size > 1 else 0)
    moved = entries(sizes, "/elsewhere")[::-1]
    again = split(moved, fraction, seed)
    assert {p.key for p in again[1]} == {p.key for p in validation}


def test_another_seed_splits_otherwise() -> None:
    listed = entries([200])
    assert split(listed, 0.5, 1) != split(listed, 0.5, 2)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_fractions_outside_their_range(fraction: float) -> None:
    with pytest.raises(InvalidInputError, match="validation_fraction"):
        split(entries([3]), fraction, 0)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_formats(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"x.{form.lower()}"
    path.write_bytes(encoded(form=form))
    array = read_picture(path, 7, 12)
    assert array.shape == (3, 7, 12)
    assert array.dtype == np.uint8
    assert source_bytes(path) == len(path.read_bytes())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes_become_rgb(mode: str) -> None:
    assert decode_picture(encoded(mode), "x", 5, 9).shape == (3, 5, 9)


def test_the_same_size_keeps_the_pixels() -> None:
    data = encoded()
    pixels = np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1)
    assert np.array_equal(decode_picture(data, "x", 5, 9), pixels)


def test_sixteen_bit_grey_keeps_its_shades() -> None:
    stream = io.BytesIO()
    shades = np.array([[0, 0x8000, 0xFFFF]], dtype=np.uint16)
    Image.fromarray(shades).save(stream, "PNG")
    assert decode_picture(stream.getvalue(), "x", 1, 3)[0].tolist() == [[0, 128, 255]]


def test_pixels_of_no_known_range_are_refused(tmp_path: Path) -> None:
    """Float pictures mostly go from 0 to 1: cut to 8 bits they would all be black."""
    Image.fromarray(np.full((4, 4), 0.7, dtype=np.float32)).save(tmp_path / "depth.tif")
    for read in (lambda path: read_picture(path, 4, 4), open_picture):
        with pytest.raises(InvalidInputError, match=r"depth\.tif.*floating.*8 or 16 bits"):
            read(tmp_path / "depth.tif")


def test_what_is_no_picture_is_told_in_the_same_words_each_time() -> None:
    """The manifest keeps the words: no address in memory belongs there."""
    with pytest.raises(InvalidInputError, match="known format") as found:
        decode_picture(b"hello", "x.jpg", 8, 8)
    assert "0x" not in str(found.value)


def test_unreadable_pictures_are_named(tmp_path: Path) -> None:
    whole = encoded(form="JPEG", size=(64, 64))
    for name, data in {"text": b"hello", "empty": b"", "cut": whole[: len(whole) // 2]}.items():
        put(tmp_path / name, data)
        with pytest.raises(InvalidInputError, match=name):
            read_picture(tmp_path / name, 8, 8)
    with pytest.raises(InvalidInputError, match="absent"):
        read_picture(tmp_path / "absent", 8, 8)


def test_a_column_of_pixels_is_not_widened_to_gigabytes() -> None:
    """Its file is small, and so is it: until it is brought to a width."""
    stream = io.BytesIO()
    Image.new("L", (1, 500_000)).save(stream, "PNG")
    assert decode_picture(stream.getvalue(), "thin.png", 8, 8).shape == (3, 8, 8)
    with pytest.raises(InvalidInputError, match=r"thin\.png: claims 1x500000, .* 256 wide .*bomb"):
        decode_picture(stream.getvalue(), "thin.png", 256, 256)


def test_an_animation_with_a_damaged_header_is_refused_at_once() -> None:
    """A bit of the canvas's height is flipped: it is 1,048,640 pixels high for frames of 64."""
    frames = [Image.new("RGB", (64, 64), (shade, 0, 0)) for shade in (0, 100, 200)]
    stream = io.BytesIO()
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:])
    data = bytearray(stream.getvalue())
    assert decode_picture(bytes(data), "a.webp", 256, 256).shape == (3, 256, 256)
    data[29] ^= 1 << 4
    with pytest.raises(InvalidInputError, match=r"a\.webp: claims 64x1048640"):
        decode_picture(bytes(data), "a.webp", 256, 256)


@pytest.mark.parametrize("limit", [44, 22, 10])
def test_decompression_bombs_are_refused(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    # Ours alone, then also Pillow's warning and its error (at twice its limit).
    monkeypatch.setattr(module, "MAX_PIXELS", 44)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit if limit < 44 else None)
    with pytest.raises(InvalidInputError, match=r"big\.png.*bomb"):
        decode_picture(encoded(), "big.png", 8, 8)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
@given(st.data())
@settings(deadline=None, max_examples=60)
def test_damaged_files_give_a_picture_or_the_one_error(form: str, data: st.DataObject) -> None:
    damaged = bytearray(encoded(form=form))
    places = st.lists(
        st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255)), min_size=1, max_size=8
    )
    for place, value in data.draw(places):
        damaged[place] = value
    del damaged[data.draw(st.integers(0, len(damaged))) :]
    with contextlib.suppress(InvalidInputError):
        assert decode_picture(bytes(damaged), "x", 4, 4).shape == (3, 4, 4)


def test_digits(tmp_path: Path) -> None:
    folder = list_pictures(write_digits(tmp_path / "digits", size=12))
    pictures = folder.splits["train"]
    assert folder.classes == tuple("0123456789")
    assert len(pictures) == 1797
    assert read_picture(pictures[0].path, 12, 12).max() > 200

    first, second = pictures[0].path, pictures[1].path
    first.write_bytes(b"damaged")
    untouched = second.stat().st_mtime_ns
    write_digits(tmp_path / "digits", size=12)
    assert read_picture(first, 12, 12).shape == (3, 12, 12)
    assert second.stat().st_mtime_ns == untouched
    assert len(list_pictures(tmp_path / "digits").splits["train"]) == 1797
    shutil.rmtree(tmp_path / "digits")
    with pytest.raises(InvalidInputError, match="size=0"):
        write_digits(tmp_path, size=0)
