"""The loss and the figures of a segmentation, against plain arithmetic."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from services.errors import InvalidInputError
from services.stream.batch import StreamBatch
from services.types import IGNORED
from services.wire.seit import v1 as wire
from tests.trainers.picture_runs import tokenadapt_run
from tests.trainers.runs import context
from trainers.config import (
    ClusterConfig,
    LoopConfig,
    OptimConfig,
    refuse_deterministic_gpu,
)
from trainers.data_config import AugmentConfig, DataConfig, OrderConfig
from trainers.loop import _Trainer, train
from trainers.models.segmenter import Segmentation
from trainers.optim import polynomial_factor
from trainers.parallel import spread
from trainers.segment_config import SegmenterModelConfig, SegmentRun
from trainers.segment_pictures import class_colours, draw_predictions
from trainers.segment_step import SegmentTask, confusion, settle_segment
from trainers.task import WorkerContext
from trainers.tokenadapt_step import prepare_tokenadapt

SPEC = wire.TokenSpec(
    grid_height=4, grid_width=4, codes=11, channels=6, image_height=16, image_width=16
)
CLASSES = ("a", "b", "c")


def run(out: Path, **changes: object) -> SegmentRun:
    made = SegmentRun(
        out=str(out),
        data=DataConfig(),
        order=OrderConfig(global_batch=8, block=2, lanes=2, window_shards=1),
        augment=AugmentConfig(recipe="segment", crop=4),
        model=SegmenterModelConfig(
            width=16,
            depth=4,
            heads=2,
            patch=1,
            decoder_width=8,
            auxiliary_width=8,
            head_dropout=0.0,
        ),
        optim=OptimConfig(base_lr=0.01, base_batch=8, warmup_epochs=1, schedule="polynomial"),
        loop=LoopConfig(epochs=2, precision="float32", validate_every=1),
        cluster=ClusterConfig(no_ray=True),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


class Fixed(nn.Module):
    """Answers with given logits, in the order of the rows' first ids."""

    def __init__(self, logits: Tensor, auxiliary: Tensor) -> None:
        super().__init__()
        self._logits, self._auxiliary = logits, auxiliary

    def forward(self, inputs: Tensor) -> Segmentation:
        which = inputs[:, 0, 0]
        return Segmentation(self._logits[which], self._auxiliary[which])


def batch(mask: Tensor, weight: list[float], step: int = 0) -> StreamBatch:
    rows = len(mask)
    inputs = torch.arange(rows)[:, None, None].expand(-1, 4, 4)
    label = torch.full((rows,), -1)
    there = torch.tensor(weight)
    return StreamBatch(
        step=step,
        epoch=0,
        rows=np.where(there.numpy() > 0, np.arange(rows), -1),
        row_epochs=np.zeros(rows, np.int64),
        inputs=inputs,
        label=label,
        label_b=label,
        mix=torch.ones(rows),
        weight=there,
        mask=mask,
    )


def drawn(seed: int, rows: int, ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    """(logits at pixels, masks)."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(3, (rows, 16, 16), generator=generator).byte()
    masks[torch.rand(masks.shape, generator=generator) < ignored] = IGNORED
    return torch.randn(rows, 3, 16, 16, generator=generator), masks


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_is_the_mean_over_pixels_of_rows_that_exist(tmp_path: Path, seed: int) -> None:
    logits, masks = drawn(seed, 4)
    masks[3] = IGNORED
    weight = [1.0, 0.0, 1.0, 1.0]
    task = SegmentTask(run(tmp_path), SPEC, CLASSES)
    found = task.loss(Fixed(logits, logits.flip(1)), batch(masks, weight))
    wanted = 0.0
    for scores, share in ((logits, 1.0), (logits.flip(1), 0.4)):
        p = scores.log_softmax(1)
        for row in (0, 2, 3):
            known = masks[row] != IGNORED
            chosen = p[row].gather(0, masks[row].long().clamp(max=2)[None])[0]
            wanted -= share * float((chosen * known).sum()) / masks[row].numel()
    assert float(found) == pytest.approx(wanted, rel=1e-5)


def test_classes_of_one_name_count_each_by_itself(tmp_path: Path) -> None:
    logits, masks = drawn(0, 4)
    found = []
    for names in (CLASSES, ("a", "b", "b")):
        task = SegmentTask(run(tmp_path, pictures=0), SPEC, names)
        task.evaluate(Fixed(logits, logits), batch(masks, [1.0] * 4))
        figures = task.validated(1)
        task.export(nn.Identity(), str(tmp_path), figures)
        found.append((figures, json.loads((tmp_path / "report.json").read_text())["iou"]))
    (told, by_letter), (same, by_name) = found
    assert same == told
    assert by_name == dict(zip(("a", "b (1)", "b (2)"), by_letter.values(), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_iou_is_counted_over_the_whole_split_each_row_once(tmp_path: Path, seed: int) -> None:
    logits, masks = drawn(seed, 6)
    masks[masks == 1] = 2  # the class 1 occurs nowhere
    logits[:, 1] = -100
    task = SegmentTask(run(tmp_path), SPEC, CLASSES)
    truth, prediction = masks[:5].numpy(), logits[:5].argmax(1).numpy()
    known = truth != IGNORED
    wanted = [
        float((known & (truth == c) & (prediction == c)).sum())
        / float((known & ((truth == c) | (prediction == c))).sum())
        for c in (0, 2)
    ]
    for _ in range(2):  # a validation starts from nothing
        model = Fixed(logits, logits)
        sums = task.evaluate(model, batch(masks, [1.0] * 5 + [0.0]))
        figures = task.validated(1)
        assert figures["miou"] == pytest.approx(np.mean(wanted), rel=1e-5)
        right = (known & (truth == prediction)).sum() / known.sum()
        assert figures["pixel_accuracy"] == pytest.approx(right, rel=1e-5)
        assert sums.shape == (1,)
    parts = SegmentTask(run(tmp_path), SPEC, CLASSES)
    for rows, weight in ((slice(0, 2), [1.0, 1.0]), (slice(2, 6), [1.0, 1.0, 1.0, 0.0])):
        parts.evaluate(Fixed(logits[rows], logits[rows]), batch(masks[rows], weight))
    assert parts.validated(1)["miou"] == pytest.approx(np.mean(wanted), rel=1e-5)


class Largest(TorchDispatchMode):
    """The largest tensor, in elements, that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.elements = max(self.elements, found.numel())
        return found


@pytest.mark.parametrize("deterministic", [False, True])
@settings(deadline=None, max_examples=20, suppress_health_check=[*HealthCheck])
@given(seed=st.integers(0, 99), classes=st.sampled_from([2, 3, 150]))
def test_pairs_of_classes_are_counted_in_little_memory(
    deterministic: bool, seed: int, classes: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape, pixels = (2, 16, 16), 512
    truth = torch.randint(classes, shape, generator=generator)
    prediction = torch.randint(classes, shape, generator=generator)
    truth[torch.rand(shape, generator=generator) < 0.3] = IGNORED
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        with Largest() as largest:
            counts = confusion(truth, prediction, classes)
    finally:
        torch.use_deterministic_algorithms(before)
    assert largest.elements <= max(pixels, classes**2)
    wanted = np.zeros((classes, classes), np.int64)
    known = (truth != IGNORED).numpy()
    np.add.at(wanted, (truth.numpy()[known], prediction.numpy()[known]), 1)
    assert (counts.numpy() == wanted).all()


@pytest.mark.parametrize("alone", [False, True])
def test_what_a_gpu_cannot_compute_alike_each_time_is_refused(
    tmp_path: Path, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu = ClusterConfig(no_ray=True) if alone else ClusterConfig(gpus_per_worker=0.5)
    exact = replace(run(tmp_path).loop, deterministic=True)
    pairs = tokenadapt_run(tmp_path, tmp_path, tmp_path)
    prepares: list[Callable[[], object]] = [
        lambda: settle_segment(run(tmp_path, loop=exact, cluster=gpu)),
        lambda: prepare_tokenadapt(replace(pairs, loop=exact, cluster=gpu)),
    ]
    for prepare in prepares:
        with pytest.raises(InvalidInputError, match=r"loop\.deterministic is True.*GPU.*leave it"):
            prepare()
    refuse_deterministic_gpu(run(tmp_path, loop=exact, cluster=ClusterConfig()))
    refuse_deterministic_gpu(run(tmp_path, cluster=gpu))


def _rank(rank: int, folder: str) -> None:
    """Two steps of two ranks with copies of the model, and no weight on the plain head."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/rendezvous", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    config = run(Path(folder))
    config = replace(config, model=replace(config.model, auxiliary_weight=0.0))
    task = SegmentTask(config, SPEC, CLASSES)
    torch.manual_seed(0)
    model = task.build_model(fresh=True)
    copy = spread(model, "ddp", torch.device("cpu"), 2)
    for step in range(2):
        model.zero_grad()
        task.loss(copy, batch(drawn(rank, 2)[1], [1.0, 1.0], step)).backward()  # type: ignore[no-untyped-call]
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    torch.save(grads, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_a_plain_head_of_no_weight_trains_on_several_workers(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, grad in first.items():
        assert torch.equal(grad, second[name]), name
        assert bool(grad.any()) != name.startswith("auxiliary."), name


def test_rows_without_masks_are_refused(tmp_path: Path) -> None:
    task = SegmentTask(run(tmp_path), SPEC, CLASSES)
    _, masks = drawn(0, 2)
    task.check(batch(masks, [1.0, 1.0]))
    with pytest.raises(InvalidInputError, match="without masks"):
        task.check(replace(batch(masks, [1.0, 1.0]), mask=None))


def test_a_part_of_a_picture_is_no_picture(tmp_path: Path) -> None:
    config = run(tmp_path, augment=AugmentConfig(recipe="segment", crop=3))
    with pytest.raises(InvalidInputError, match=r"augment.crop is 3, .* 4x4 tokens.*set it to 4"):
        SegmentTask(config, SPEC, CLASSES)


def learnable(config: SegmentRun) -> tuple[WorkerContext, SegmentTask]:
    """A worker and a task for the real loop: the class of a pixel is its token's id % 3."""

    def with_masks(one: StreamBatch) -> StreamBatch:
        mask = (one.inputs % 3).repeat_interleave(4, 1).repeat_interleave(4, 2).byte()
        return replace(one, mask=mask)

    worker = context(epochs=config.loop.epochs, change=with_masks)
    batches = [with_masks(one) for one in worker.open_validation()]
    worker = replace(worker, spec=SPEC, classes=CLASSES, open_validation=lambda: batches)
    task = SegmentTask(config, SPEC, CLASSES)
    task._tokenizer = lambda: None  # type: ignore[method-assign]  # there is no dataset
    return worker, task


@pytest.mark.parametrize("pictures", [0, 3])
def test_a_run_killed_before_its_export_leaves_all_files_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: int
) -> None:
    whole, killed = (run(tmp_path / name, pictures=pictures) for name in ("whole", "killed"))
    train(whole, *learnable(whole))
    files = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {"report.json"} <= files
    assert ("predictions.png" in files) == bool(pictures)

    def die(self: _Trainer) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Trainer, "_export", die)
        with pytest.raises(KeyboardInterrupt):
            train(killed, *learnable(killed))
    assert not (tmp_path / "killed" / "report.json").exists()
    metrics = (tmp_path / "killed" / "metrics.jsonl").read_bytes()
    train(killed, *learnable(killed))
    assert {path.name for path in (tmp_path / "killed").iterdir()} == files
    reports = [json.loads((tmp_path / n / "report.json").read_text()) for n in ("whole", "killed")]
    same = ("iou", "validation_miou", "validation_loss", "best")
    assert all(reports[0][name] == reports[1][name] for name in same)
    assert (tmp_path / "killed" / "metrics.jsonl").read_bytes() == metrics
    # Where all files stand, nothing is measured again.
    worker, task = learnable(killed)
    train(killed, replace(worker, open_validation=lambda: pytest.fail("measured")), task)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_learns_and_leaves_pictures_and_a_report(tmp_path: Path, accumulate: int) -> None:
    config = run(tmp_path / "run", pictures=3)
    config = replace(config, loop=replace(config.loop, epochs=12, grad_accum=accumulate))
    figures = train(config, *learnable(config))
    assert figures["finished"] == 1
    assert figures["validation_miou"] > 0.5
    assert (tmp_path / "run" / "predictions.png").read_bytes().startswith(b"\x89PNG")
    assert '"iou"' in (tmp_path / "run" / "report.json").read_text()


def test_the_rate_falls_as_mmsegmentation_s_does() -> None:
    total, warmup = 80_000, 1_500
    found = [polynomial_factor(step, total, warmup, 1.0) for step in range(0, total, 100)]
    assert found[0] == pytest.approx(1 / 1501)
    assert max(found) == pytest.approx(1 - 1500 / 80_000)
    assert found[400] == pytest.approx(0.5)
    assert polynomial_factor(total, total, warmup, 1.0) == 0
    assert polynomial_factor(total, total, warmup, 0.9, floor=0.1) == pytest.approx(0.1)
    assert polynomial_factor(20_000, total, warmup, 2.0) == pytest.approx(0.75**2)


def test_colours_tell_classes_apart_and_a_picture_is_drawn_of_any_number() -> None:
    table = class_colours(150)
    assert table.shape == (256, 3)
    assert len({tuple(row) for row in table[:150].round(4).tolist()}) == 150
    assert (table[IGNORED] < 0.2).all()
    for count in (1, 9):
        masks = np.arange(count * 64, dtype=np.uint8).reshape(count, 8, 8) % 3
        data = draw_predictions(None, masks, masks, CLASSES)
        assert data.startswith(b"\x89PNG")
