"""A trained model leaves as a checkpoint of the published code, and such a one comes back."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from tests.trainers.runs import CLASSES, SPEC, classify_run, context, mtm_run
from trainers.checkpoint import load_export
from trainers.loop import train
from trainers.models.weights import load_published, read_state
from trainers.published import main
from trainers.step import ClassifyTask, MtmTask


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("kind", ["mtm", "classify"])
def test_a_run_leaves_and_comes_back_bit_by_bit(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "run"
    task: MtmTask | ClassifyTask
    if kind == "mtm":
        pretraining = mtm_run(out, ema=0.5)
        task = MtmTask(pretraining, SPEC)
        train(pretraining, context(), task)
    else:
        tuning = classify_run(out, ema=0.5)
        task = ClassifyTask(tuning, SPEC, CLASSES)
        train(tuning, context(), task)
    weights = load_export(str(out))[0]
    assert main([str(out), str(tmp_path / "final.pth")]) == 0
    assert same(read_state(tmp_path / "final.pth"), weights)
    # As the published scripts read it: a plain dict of tensors under `model`.
    loaded = torch.load(tmp_path / "final.pth", weights_only=True)
    assert list(loaded) == ["model"]
    model = task.build_model(fresh=False)
    load_published(model, loaded["model"])
    assert same(dict(model.state_dict()), weights)

    last = str(out / "checkpoints" / "step-00000006.pt")
    assert main([last, str(tmp_path / "ema.pth"), "--ema"]) == 0
    assert main([last, str(tmp_path / "raw.pth")]) == 0
    assert same(read_state(tmp_path / "ema.pth"), weights)
    assert not same(read_state(tmp_path / "raw.pth"), weights)


def test_what_cannot_be_written_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(mtm_run(tmp_path), context(), MtmTask(mtm_run(tmp_path), SPEC))
    stands = tmp_path / "stands.pth"
    stands.write_bytes(b"someone's")
    with caplog.at_level(logging.INFO):
        assert main([str(tmp_path), str(stands)]) == 2
        assert main([str(tmp_path), str(tmp_path / "model.bin")]) == 2
        assert main([str(tmp_path), str(tmp_path / "a.pth"), "--ema"]) == 2
        assert main([str(tmp_path / "nowhere"), str(tmp_path / "a.pth")]) == 2
        last = str(tmp_path / "checkpoints" / "step-00000006.pt")
        assert main([last, str(tmp_path / "a.pth"), "--ema"]) == 2
    assert stands.read_bytes() == b"someone's"
    assert not (tmp_path / "a.pth").exists()
    for said in ("stands already", "end it in .pth", "one set of weights", "no exported model"):
        assert said in caplog.text
