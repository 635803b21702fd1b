"""What commands that learn from pictures refuse before any work: nothing is written."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from tests.trainers.picture_runs import write_pictures, write_tokenizer
from trainers.command import run
from trainers.picture_config import TokenAdaptRun
from trainers.recipes import tokenadapt, tokenizer
from trainers.tokenadapt_step import prepare_tokenadapt, tokenadapt_worker
from trainers.tokenizer_config import TokenizerRun
from trainers.tokenizer_step import prepare_tokenizer, tokenizer_worker

FOREIGN = {  # by name of the file: its bytes, and what is said of it
    "model.safetensors": (save({"w": torch.zeros(2)}), "tokenizer.safetensors that its trainer"),
    "vqgan.ckpt": (b"PK\x03\x04 something of torch", "seit import-tokenizer"),
}


@pytest.fixture
def given(tmp_path: Path) -> tuple[str, ...]:
    images = write_pictures(tmp_path / "images")
    return ("--pictures.images", str(images), "--out", str(tmp_path / "run"), "--cluster.no-ray")


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_is_no_tokenizer(
    tmp_path: Path, given: tuple[str, ...], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    data, words = FOREIGN[name]
    (tmp_path / name).write_bytes(data)
    argv = ("--recipe", "tokenadapt-tiny", *given, "--tokenizer", str(tmp_path / name))
    assert run(TokenAdaptRun, tokenadapt.RECIPES, tokenadapt_worker, prepare_tokenadapt, argv) == 2
    assert f"{tmp_path / name}: " in caplog.text
    assert words in caplog.text
    assert not (tmp_path / "run").exists()


def test_a_scale_that_does_not_fit_the_tokenizer(
    tmp_path: Path, given: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    own = write_tokenizer(tmp_path / "tokenizer.safetensors")
    argv = ("--recipe", "tokenadapt-tiny", *given, "--tokenizer", str(own), "--model.scale", "7")
    assert run(TokenAdaptRun, tokenadapt.RECIPES, tokenadapt_worker, prepare_tokenadapt, argv) == 2
    assert "model.scale 7" in caplog.text
    assert not (tmp_path / "run").exists()


def test_weights_of_lpips_that_are_not_there(
    tmp_path: Path, given: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    gone = tmp_path / "vgg16.pth"
    lpips = ("--model.perceptual", "0.1", "--model.perceptual-weights", str(gone))
    argv = ("--recipe", "tokenizer-tiny", *given, *lpips)
    with caplog.at_level(logging.INFO):
        code = run(TokenizerRun, tokenizer.RECIPES, tokenizer_worker, prepare_tokenizer, argv)
    assert (code, str(gone) in caplog.text) == (2, True)
    assert not (tmp_path / "run").exists()
