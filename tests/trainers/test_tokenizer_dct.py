"""The program that fits a DCT tokenizer: its files, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from services.tokens.tokenizer import load_tokenizer
from tests.trainers.picture_runs import SIDE, write_pictures
from trainers.tokenizer_dct import main


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("images"))


def words(images: Path, out: Path, *more: str) -> list[str]:
    return [
        *("--pictures.images", str(images), "--out", str(out), "--image-size", str(SIDE)),
        *("--block", "4", "--keep", "6", "--codes", "32", *more),
    ]


def test_it_leaves_a_tokenizer_that_shows_the_pictures(images: Path, tmp_path: Path) -> None:
    assert main(words(images, tmp_path / "a")) == 0
    assert main(words(images, tmp_path / "b")) == 0
    one, two = (tmp_path / name / "tokenizer.safetensors" for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    tokenizer = load_tokenizer(one)
    assert (tokenizer.kind, tokenizer.spec.codes, tokenizer.spec.channels) == ("dct", 32, 18)
    told = json.loads((tmp_path / "a" / "report.json").read_text())
    assert told["validation_psnr_db"] > 15
    assert 0 < told["validation_code_use"] <= 1
    ids = tokenizer.encode(torch.rand(2, 3, SIDE, SIDE))
    assert ids.shape == (2, SIDE // 4, SIDE // 4)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--keep", "17"], "outside 1..16"),
        (["--block", "5"], "multiples of the patch"),
        (["--most", "0"], "at least 1"),
        (["--pictures.images", "nowhere"], "nowhere"),
        (["--pictures.validation-fraction", "0"], "none to validate on"),
    ],
)
def test_what_cannot_be_fitted_is_said(
    images: Path,
    tmp_path: Path,
    more: list[str],
    said: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        code = main(words(images, tmp_path / "none", *more))
    except SystemExit as ended:  # tyro's own
        code = int(ended.code or 0)
    assert code == 2
    assert said in caplog.text + " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "none").exists()
