"""Segmentation by its command line: from shards with masks to a model, figures and pictures."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from services.shards.store import open_store
from tests.small_masks import CLASSES, write_masked
from trainers.checkpoint import load_export
from trainers.command import run
from trainers.recipes.segment import RECIPES
from trainers.segment_config import SegmentRun
from trainers.segment_step import segment_worker, settle_segment

SMALL = (
    *("--recipe", "segment-tiny", "--cluster.no-ray", "--optim.warmup-epochs", "0"),
    *("--order.global-batch", "8", "--order.block", "4", "--loop.epochs", "3"),
    *("--loop.validate-every", "3", "--augment.crop", "8", "--augment.overrides"),
    *("--model.width", "16", "--model.heads", "2", "--model.patch", "1"),
    *("--model.decoder-width", "8", "--model.auxiliary-width", "8", "--pictures", "4"),
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEIT_CACHE_DIR", str(tmp_path / "cache"))
    write_masked(open_store(str(tmp_path / "data")))
    return tmp_path


def segment(root: Path, out: str, *argv: str) -> int:
    given = (*SMALL, "--out", str(root / out), "--data.root", str(root / "data"), *argv)
    return run(SegmentRun, RECIPES, segment_worker, settle_segment, given)


@pytest.mark.parametrize("inputs", ["ids", "embeddings"])
def test_a_run_goes_from_shards_to_a_model_that_another_starts_from(
    root: Path, inputs: str
) -> None:
    assert segment(root, "first", "--model.input", inputs) == 0
    report = json.loads((root / "first" / "report.json").read_text())
    assert set(report["iou"]) <= set(CLASSES)
    assert 0 <= report["validation_miou"] <= 1
    assert (root / "first" / "predictions.png").read_bytes().startswith(b"\x89PNG")
    tensors, about = load_export(str(root / "first"))
    assert json.loads(about["classes"]) == list(CLASSES)
    assert "encoder.blocks.3.attn.qkv.weight" in tensors
    init = ("--model.init", str(root / "first"))
    again = ("--model.input", inputs, *init)
    assert segment(root, "second", *again) == 0
    shutil.rmtree(root / "first")
    assert segment(root, "second", *again) == 0  # a run that stands does not need it any more


def test_a_finished_run_draws_another_number_of_pictures(root: Path) -> None:
    assert segment(root, "run") == 0
    drawn = (root / "run" / "predictions.png").read_bytes()
    figures = (root / "run" / "metrics.jsonl").read_bytes()
    assert segment(root, "run", "--pictures", "2") == 0
    fewer = (root / "run" / "predictions.png").read_bytes()
    assert fewer != drawn
    assert segment(root, "run") == 0
    assert (root / "run" / "predictions.png").read_bytes() == drawn
    assert (root / "run" / "metrics.jsonl").read_bytes() == figures


def test_a_checkpoint_of_the_published_code_is_a_model_to_start_from(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Here an encoder under its published names, as MTM and classification leave it."""
    assert segment(root, "first", "--loop.epochs", "1") == 0
    tensors, _ = load_export(str(root / "first"))
    encoder = {n.removeprefix("encoder."): v for n, v in tensors.items() if "encoder." in n}
    for name, state in (("mtm", encoder), ("other", dict(list(encoder.items())[:-1]))):
        torch.save({"model": state}, root / f"{name}.pth")
    for out, init in (("folder", "first"), ("file", "mtm.pth")):
        assert segment(root, out, "--loop.epochs", "1", "--model.init", str(root / init)) == 0
    one, two = (load_export(str(root / out))[0] for out in ("folder", "file"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    with caplog.at_level(logging.ERROR):
        assert segment(root, "misfit", "--model.init", str(root / "other.pth")) == 2
    assert "is missing" in caplog.text
    assert not (root / "misfit").exists()


def test_a_model_to_start_from_that_does_not_fit_is_refused_before_anything_is_written(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert segment(root, "first", "--loop.epochs", "1") == 0
    init = ("--model.init", str(root / "first"))
    with caplog.at_level(logging.ERROR):
        assert segment(root, "second", *init, "--model.width", "32") == 2
    assert "the model's is" in caplog.text
    assert not (root / "second").exists()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--augment.crop", "6"], "augment.crop is 6"),
        (["--augment.recipe", "finetune"], "would no longer fit"),
        (["--data.dataset", "bare"], "32 of 32 rows have no mask"),
        (["--model.depth", "3"], "at least 4 blocks"),
        (["--model.init", "nowhere"], "no exported model"),
        (["--model.init", "/nowhere/model.pth"], "nothing was loaded"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_code_2(
    root: Path, argv: list[str], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_masked(open_store(str(root / "data")), "bare", masked=False)
    with caplog.at_level(logging.ERROR):
        assert segment(root, "run", *argv) == 2
    assert says in caplog.text
    assert not (root / "run").exists()
