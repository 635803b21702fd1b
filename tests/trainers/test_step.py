"""What a step computes: masks that no split of a batch changes, soft targets, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import FormatError, InvalidInputError
from services.stream.batch import StreamBatch
from tests.trainers.runs import CLASSES, SPEC, classify_run, context, make_batch, mtm_run, recorded
from trainers.checkpoint import load_export
from trainers.config import MtmRun
from trainers.loop import train
from trainers.models.classifier import soft_cross_entropy
from trainers.step import ClassifyTask, MtmTask


def mtm_task(run: MtmRun) -> tuple[MtmTask, torch.nn.Module]:
    torch.manual_seed(0)
    task = MtmTask(run, SPEC)
    return task, task.build_model(fresh=True).eval()


@pytest.mark.parametrize("world", [2, 4])
def test_masks_do_not_depend_on_the_number_of_ranks(tmp_path: Path, world: int) -> None:
    task, model = mtm_task(mtm_run(tmp_path))
    for step in (0, 2, 4):
        whole = task.loss(model, make_batch(step))
        parts = [task.loss(model, make_batch(step, rank, world)) for rank in range(world)]
        assert torch.stack(parts).sum().item() == pytest.approx(whole.item(), rel=1e-5)


def test_masks_change_with_the_step_and_stay_with_seed(tmp_path: Path) -> None:
    task, model = mtm_task(mtm_run(tmp_path))
    other = MtmTask(mtm_run(tmp_path, seed=3), SPEC)
    batch = make_batch(0)
    again = task.loss(model, replace(batch, epoch=1, step=3))
    assert task.loss(model, batch).item() == task.loss(model, batch).item()
    assert task.loss(model, batch).item() != again.item()
    assert task.loss(model, batch).item() != other.loss(model, batch).item()


def test_missing_rows_count_nothing(tmp_path: Path) -> None:
    task, model = mtm_task(mtm_run(tmp_path))
    batch = make_batch(2)
    there = torch.from_numpy(batch.rows >= 0)
    spoilt = replace(batch, inputs=torch.where(there[:, None, None], batch.inputs, 0))
    assert not there.all()
    for compute in (task.loss, task.evaluate):
        assert torch.equal(compute(model, spoilt), compute(model, batch))


def test_validation_accuracy_is_a_share_of_masked_tokens(tmp_path: Path) -> None:
    task, model = mtm_task(mtm_run(tmp_path))
    batch = make_batch(0)
    _, accuracy = (task.evaluate(model, batch) / batch.weight.sum()).tolist()
    assert 0 <= accuracy <= 1
    loss = task.evaluate(model, batch)[0] / batch.weight.sum()
    assert loss.item() == pytest.approx(math.log(SPEC.codes), rel=0.5)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 6),
    classes=st.integers(1, 7),
    smoothing=st.floats(0, 1),
    seed=st.integers(0, 10_000),
)
def test_soft_targets_equal_dense_ones(
    rows: int, classes: int, smoothing: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, classes, generator=draw)
    label, label_b = torch.randint(classes, (2, rows), generator=draw)
    mix = torch.rand(rows, generator=draw)
    first, second = (torch.eye(classes)[chosen] for chosen in (label, label_b))
    dense = mix[:, None] * first + (1 - mix[:, None]) * second
    dense = (1 - smoothing) * dense + smoothing / classes
    expected = torch.nn.functional.cross_entropy(logits, dense, reduction="none")
    found = soft_cross_entropy(logits, label, label_b, mix, smoothing)
    assert torch.allclose(found, expected, atol=1e-5)


def test_top1_and_top5_are_those_of_the_logits(tmp_path: Path) -> None:
    classes = [str(number) for number in range(9)]
    task = ClassifyTask(classify_run(tmp_path), SPEC, classes)
    batch = make_batch(2)  # two rows of it do not exist

    class Fixed(torch.nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return -(torch.arange(9.0) - 3).abs().expand(len(ids), -1)  # 3 first; 1..5 among five

    sums = task.evaluate(Fixed(), replace(batch, label=torch.tensor([3, 3, 1, 5, 0, 8, 3, 3])))
    assert sums[1:].tolist() == [2.0, 4.0]


def test_rows_without_a_label_are_refused(tmp_path: Path) -> None:
    task = ClassifyTask(classify_run(tmp_path), SPEC, CLASSES)
    batch = make_batch(2)
    missing = torch.from_numpy(batch.rows < 0)
    task.check(replace(batch, label=torch.where(missing, -1, batch.label)))
    for bad in (-1, len(CLASSES)):
        label = batch.label.clone()
        label[0] = bad
        with pytest.raises(InvalidInputError, match=rf"label {bad}, valid are 0\.\.2"):
            task.check(replace(batch, label=label))


def test_a_dataset_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="has no classes"):
        ClassifyTask(classify_run(tmp_path), SPEC, [])


def test_pretrain_then_finetune(tmp_path: Path) -> None:
    run = mtm_run(tmp_path / "mtm")
    figures = train(run, context(), MtmTask(run, SPEC))
    assert figures["finished"] == 1
    assert all(math.isfinite(entry["loss"]) for entry in recorded(tmp_path / "mtm"))
    tuned = classify_run(tmp_path / "tuned")
    tuned = replace(tuned, model=replace(tuned.model, init=str(tmp_path / "mtm")))
    task = ClassifyTask(tuned, SPEC, CLASSES)
    model = task.build_model(fresh=True)
    weights, _ = load_export(str(tmp_path / "mtm"))
    assert torch.equal(model.blocks[0].attn.qkv.weight, weights["blocks.0.attn.qkv.weight"])
    assert {"validation_top1", "validation_top5"} < train(tuned, context(), task).keys()
    wide = replace(tuned, model=replace(tuned.model, width=32))
    with pytest.raises(FormatError, match=r"model\.init .*mtm"):
        ClassifyTask(wide, SPEC, CLASSES).build_model(fresh=True)
    ClassifyTask(wide, SPEC, CLASSES).build_model(fresh=False)  # a checkpoint will fill it


@pytest.mark.parametrize("kind", ["mtm", "classify"])
def test_every_operation_of_a_run_has_a_deterministic_form(tmp_path: Path, kind: str) -> None:
    found = []
    for number in range(2):
        options = {"deterministic": True, "ema": 0.5, "precision": "bf16"}
        seen = []

        def watch(batch: StreamBatch, seen: list[bool] = seen) -> StreamBatch:
            seen.append(torch.are_deterministic_algorithms_enabled())
            return batch

        out = tmp_path / str(number)
        if kind == "mtm":
            pretraining = mtm_run(out, **options)
            train(pretraining, context(change=watch), MtmTask(pretraining, SPEC))
        else:
            tuning = classify_run(out, **options)
            train(tuning, context(change=watch), ClassifyTask(tuning, SPEC, CLASSES))
        assert not torch.are_deterministic_algorithms_enabled()  # only while it runs
        assert all(seen)
        found.append(load_export(str(out))[0])
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_embeddings_in_half_precision_are_read(tmp_path: Path) -> None:
    run = classify_run(tmp_path)
    task = ClassifyTask(replace(run, augment=replace(run.augment, recipe="scratch")), SPEC, CLASSES)
    batch = make_batch(0)
    maps = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 6, 4, 4)))
    half = replace(batch, inputs=maps.to(torch.bfloat16)).to(torch.device("cpu"))
    loss = task.loss(task.build_model(fresh=True), half)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
