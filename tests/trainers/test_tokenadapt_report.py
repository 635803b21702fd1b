"""The report on TokenAdapt as a command: its files, its figures, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from services.augment.tokenadapt import TokenAdapt, TokenAdaptConfig, codebook_digest
from services.tokens.tokenizer import load_tokenizer
from tests.trainers.picture_runs import write_pictures, write_tokenizer
from trainers.tokenadapt_compare import METHODS, OPERATIONS
from trainers.tokenadapt_report import ReportConfig, main, table


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An untrained tokenizer and untrained networks for it."""
    folder = tmp_path_factory.mktemp("files")
    tokenizer = load_tokenizer(write_tokenizer(folder / "tokenizer.safetensors"))
    spec = tokenizer.spec
    grid = (spec.grid_height, spec.grid_width)
    torch.manual_seed(0)
    config = TokenAdaptConfig(
        grid, (3, 3), spec.channels, spec.codes, dim=16, heads=1, mlp=16, dim_head=16
    )
    model = TokenAdapt(config, codebook_digest(tokenizer.codebook.weight))
    (folder / "tokenadapt.safetensors").write_bytes(model.to_bytes())
    return folder / "tokenizer.safetensors", folder / "tokenadapt.safetensors"


def words(files: tuple[Path, Path], images: Path, out: Path, *more: str) -> list[str]:
    return [
        *("--tokenizer", str(files[0]), "--tokenadapt", str(files[1])),
        *("--pictures.images", str(images), "--out", str(out), *more),
    ]


def test_it_leaves_figures_and_pictures(
    files: tuple[Path, Path], images: Path, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    found = []
    for batch in ("2", "5"):  # five pictures are held out
        out = tmp_path / batch
        out.mkdir()
        (out / "report.json").write_text("an older one")
        with (out / "report.json").open() as reader:
            code = main(words(files, images, out, "--batch", batch, "--views.mixup-alpha", "0.5"))
            assert reader.read() == "an older one"  # whole, whenever it is read
        assert code == 0
        for name in ("report.png", "augmentations.png"):
            with Image.open(out / name) as picture:
                assert min(picture.size) > 100
        found.append(json.loads((out / "report.json").read_text()))
    torch.set_num_threads(threads)
    one, two = found
    assert one["pictures"] == two["pictures"] == 5
    assert set(one["operations"]) == set(OPERATIONS)
    for operation, methods in one["operations"].items():
        for method in METHODS:
            assert 0 <= methods[method]["agreement"] <= 1
            assert methods[method]["images_per_second"] > 0
            if operation != "mixup":  # which pairs the pictures of a batch
                other = two["operations"][operation][method]
                assert methods[method]["psnr_db"] == pytest.approx(other["psnr_db"], rel=1e-4)
    text = table(one)
    assert all(operation in text for operation in OPERATIONS)
    assert "decode-augment-encode" in text


def test_a_tokenizer_that_the_weights_do_not_belong_to_is_refused(
    files: tuple[Path, Path],
    images: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = TokenAdapt.from_bytes(files[1])
    (tmp_path / "other.safetensors").write_bytes(TokenAdapt(other.config, "0" * 32).to_bytes())
    wrong = (files[0], tmp_path / "other.safetensors")
    assert main(words(wrong, images, tmp_path / "out")) == 2
    assert "that they were trained with" in caplog.text
    assert main(words(files, tmp_path / "nowhere", tmp_path / "out")) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [{"batch": 0}, {"most": 0}, {"threads": 0}])
def test_counts_are_at_least_one(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ReportConfig("a", "b", **change)  # type: ignore[arg-type]
