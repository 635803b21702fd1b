"""The linear probe and the program around it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from services.errors import InvalidInputError
from tests.trainers.classifiers import DATASET, World
from trainers.evaluation import load_classifier, token_rows
from trainers.separability import features, main, probe


@pytest.mark.parametrize("seed", range(3))
def test_the_probe_tells_what_lies_apart_from_what_does_not(seed: int) -> None:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, 300)
    apart = (draw.normal(size=(300, 5)) + 6 * np.eye(3, 5)[labels]).astype(np.float32)
    mixed = draw.normal(size=(300, 5)).astype(np.float32)
    for points, low, high in ((apart, 0.97, 1.0), (mixed, 0.2, 0.5)):
        found = probe((points[:200], labels[:200]), (points[200:], labels[200:]))
        assert low <= found <= high
    with pytest.raises(InvalidInputError, match="one class only"):
        probe((apart, np.zeros(300, np.int64)), (apart, labels))


def test_features_are_what_the_head_reads_and_the_program_reports_the_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SEIT_CACHE_DIR", str(tmp_path / "cache"))
    world = World(tmp_path)
    run = world.train("run", "--recipe", "scratch-tiny", "--augment.overrides")
    cpu = torch.device("cpu")
    classifier = load_classifier(str(run), cpu)
    by_split = {}
    for split in ("train", "validation"):
        rows = token_rows(classifier, str(world.root), DATASET, split, None, 7)
        by_split[split] = features(classifier, rows, cpu)
        points, labels = by_split[split]
        assert labels.tolist() == [picture.label for picture in world.splits[split]]
        ids = torch.cat([batch.inputs for batch in rows.open()])
        with torch.inference_mode():
            logits = classifier.model.head(torch.from_numpy(points))
            assert torch.allclose(logits, classifier.model(ids), atol=1e-5)
    given = ["--model", str(run), "--root", str(world.root), "--dataset", DATASET]
    assert main([*given, "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "separability.json").read_text())
    assert found["linear_probe_top1"]["run"]["none"] == pytest.approx(probe(*by_split.values()))
    assert (tmp_path / "out" / "separability.png").stat().st_size > 5_000
    # Moved by nothing, rows are what they were; through f and g they are what those make of them.
    still = [f"--views.{name}-probability" for name in ("flip", "affine", "crop")]
    words = [*given, "--augment", "none", "naive", "tokenadapt", "--tokenadapt"]
    words += [str(world.tokenadapt()), *(word for name in still for word in (name, "0"))]
    assert main([*words, "--out", str(tmp_path / "kinds")]) == 0
    kinds = json.loads((tmp_path / "kinds" / "separability.json").read_text())
    kinds = kinds["linear_probe_top1"]["run"]
    assert list(kinds) == ["none", "naive", "tokenadapt"]
    assert kinds["naive"] == kinds["none"] == found["linear_probe_top1"]["run"]["none"]
    with caplog.at_level(logging.ERROR):
        with pytest.raises(SystemExit):
            main([*given, "--augment", "tokenadapt", "--out", str(tmp_path / "o")])
        assert main([*given, "--train-split", "none", "--out", str(tmp_path / "o")]) == 2
    assert "no split 'none'" in caplog.text
    assert not (tmp_path / "o").exists()
