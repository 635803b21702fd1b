"""Pictures stored smaller: what is written, going on after a stop, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.pictures import list_pictures
from trainers.picture_variant import REPORT, main


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Colour JPEGs of one class, grey PNGs of another, some of one name in two folders."""
    draw = np.random.default_rng(0)
    for number in range(10):
        noise = draw.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((40, 30), Image.Resampling.BICUBIC)
        for path, image in (
            (f"cat/{number}.jpg", picture),
            (f"cat/more/{number}.jpg", picture),
            (f"dog/{number}.png", picture.convert("L")),
        ):
            file = tmp_path / "images" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file, quality=90) if path.endswith("jpg") else image.save(file)
    return tmp_path / "images"


def written(out: Path) -> dict[str, Image.Image]:
    return {str(p.relative_to(out)): Image.open(p) for p in sorted(out.rglob("*.*g"))}


def test_jpeg_of_a_quality(images: Path, tmp_path: Path) -> None:
    sizes = []
    for quality in ("80", "10"):
        out = tmp_path / quality
        assert main(["--images", str(images), "--out", str(out), "--jpeg-quality", quality]) == 0
        found = written(out)
        assert len(found) == 30
        assert {image.format for image in found.values()} == {"JPEG"}
        assert {image.size for image in found.values()} == {(40, 30)}
        assert all((i.mode == "L") == ("/dog/" in name) for name, i in found.items())
        report = json.loads((out / REPORT).read_text())["splits"]
        for split, folder in (("train", "train"), ("validation", "val")):
            files = list((out / folder).rglob("*.jpg"))
            assert report[split]["pictures"] == len(files)
            assert report[split]["bytes"] == sum(file.stat().st_size for file in files)
        listed = list_pictures(out)
        assert listed.classes == ("cat", "dog")
        assert set(listed.splits) == {"train", "validation"}
        sizes.append(report["train"]["bytes"])
    assert sizes[1] < sizes[0]


def test_a_lower_resolution_keeps_the_kind_of_file(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "half"
    assert main(["--images", str(images), "--out", str(out), "--resolution", "0.5"]) == 0
    for name, image in written(out).items():
        assert image.size == (20, 15)
        assert image.format == ("PNG" if "/dog/" in name else "JPEG")


def test_it_goes_on_where_it_stood_and_refuses_another(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    argv = ["--images", str(images), "--out", str(out), "--jpeg-quality"]
    assert main([*argv, "30"]) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")}
    (out / REPORT).unlink()  # as if it had been stopped before its end
    gone = sorted(before)[3]
    gone.unlink()
    assert main([*argv, "30"]) == 0
    assert (out / REPORT).exists()
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")}
    assert {path for path in before if before[path] != after[path]} == {gone}
    assert main([*argv, "31"]) == 2
    assert "holds pictures of {'jpeg_quality': 30" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")} == after


@pytest.mark.parametrize(
    "words",
    ["", "--jpeg-quality 0", "--jpeg-quality 96", "--resolution 1", "--resolution 0",
     "--jpeg-quality 5 --resolution 0.5", "--jpeg-quality 5 --threads 0"],
)  # fmt: skip
def test_what_makes_no_variant_is_refused(words: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--images", str(images), "--out", str(tmp_path / "out"), *words.split()])
    assert ended.value.code == 2
    assert not (tmp_path / "out").exists()


def test_a_folder_of_broken_pictures_is_refused(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (images / "cat" / "broken.jpg").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert main(["--images", str(images), "--out", str(out), "--jpeg-quality", "5"]) == 2
    assert "broken.jpg" in caplog.text
    assert not (out / REPORT).exists()
