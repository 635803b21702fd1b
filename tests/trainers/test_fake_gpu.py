"""Training steps on a GPU that is not there (`tests.fake_gpu`): forward, update, average, figures.

Three parts cannot be run so. Autograd's engine asks the driver for the device: gradients of zeros
take the place of a backward pass, whose operations `test_no_wait` watches on a CPU. `bincount`, in
the validation of a segmentation, has a size that depends on values, and the clock of TokenAdapt's
comparison waits for the device on purpose: neither stands in a step.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from services.stream.batch import StreamBatch
from services.tokens.codebook import Codebook
from services.tokens.tokenizer import load_tokenizer
from tests.fake_gpu import GPU, FakeGpu, fake_gpu
from tests.trainers.picture_runs import (
    SIDE,
    tokenadapt_run,
    tokenizer_run,
    vqgan_run,
    write_tokenizer,
)
from tests.trainers.runs import CLASSES, SPEC, classify_run, context, mtm_run
from tests.trainers.test_loop import stops_after
from trainers.average import build_average
from trainers.checkpoint import Checkpoints
from trainers.config import Run
from trainers.data_config import AugmentConfig
from trainers.loop import _Trainer, train
from trainers.pixel_step import PixelTask
from trainers.recipes.pixels import pixels_tiny
from trainers.segment_config import SegmenterModelConfig, SegmentRun
from trainers.segment_step import SegmentTask
from trainers.step import ClassifyTask, MtmTask
from trainers.task import Task
from trainers.tokenadapt_step import TokenAdaptTask
from trainers.tokenizer_config import CodesRun
from trainers.tokenizer_step import TokenizerTask

Change = Callable[[StreamBatch], StreamBatch]
Case = tuple[Run, Task, Change]
HOST = torch.device("cpu")


def same(batch: StreamBatch) -> StreamBatch:
    return batch


def pictured(side: int, batch: StreamBatch) -> StreamBatch:
    return replace(batch, inputs=torch.zeros(len(batch), 3, side, side, dtype=torch.uint8))


def masked(batch: StreamBatch) -> StreamBatch:
    return replace(batch, mask=torch.zeros(len(batch), 16, 16, dtype=torch.uint8))


def mtm(gpu: FakeGpu, out: Path, **loop: Any) -> Case:
    run = mtm_run(out, **loop)
    return run, MtmTask(run, SPEC), same


def classify(gpu: FakeGpu, out: Path, **loop: Any) -> Case:
    run = classify_run(out, **loop)
    run = replace(run, optim=replace(run.optim, layer_decay=0.7, clip=0.5))
    return run, ClassifyTask(run, SPEC, CLASSES), same


def pixels(gpu: FakeGpu, out: Path, **loop: Any) -> Case:
    run = pixels_tiny()
    run = replace(run, out=str(out), loop=replace(run.loop, **loop))
    return run, PixelTask(run, CLASSES), partial(pictured, run.model.image_size)


def segment(gpu: FakeGpu, out: Path, **loop: Any) -> Case:
    model = SegmenterModelConfig(
        width=16, depth=4, heads=2, patch=1, decoder_width=8, auxiliary_width=8
    )
    base = mtm_run(out, **loop)
    run = SegmentRun(
        out=str(out),
        data=base.data,
        order=base.order,
        augment=AugmentConfig(recipe="segment", crop=4),
        model=model,
        optim=replace(base.optim, smoothing=0.0),
        loop=base.loop,
        cluster=base.cluster,
    )
    return run, SegmentTask(run, SPEC, CLASSES), masked


def codes(make: Callable[..., CodesRun], gpu: FakeGpu, out: Path, **loop: Any) -> Case:
    """Codes are revived in the first step and in the second."""
    run = make(out, out, **loop)
    return run, TokenizerTask(run, HOST), partial(pictured, SIDE)


def tokenadapt(gpu: FakeGpu, out: Path, **loop: Any) -> Case:
    file = write_tokenizer(out.with_suffix(".safetensors"))
    run = tokenadapt_run(out, out, file, **loop)
    task = TokenAdaptTask(run, load_tokenizer(file), HOST)
    return run, task, partial(pictured, SIDE)


CASES: dict[str, Callable[..., Case]] = {
    "mtm": mtm,
    "classify": classify,
    "pixels": pixels,
    "segment": segment,
    "tokenizer": partial(codes, tokenizer_run),
    "vqgan": partial(codes, vqgan_run),
    "tokenadapt": tokenadapt,
}
NOT_EVALUATED = ("segment", "tokenadapt")


def on_gpu(gpu: FakeGpu, task: Task) -> tuple[nn.Module, ModelEmaV3]:
    """The task's model there, with its average, and what the task itself holds. They are made on
    the host, with values, as some of what is made at a start is read."""
    model = task.build_model(fresh=True)
    average = build_average(model, 0.9, buffers=True)
    gpu.move(model)
    gpu.move(average)
    if isinstance(task, TokenAdaptTask):
        comparison = task._comparison
        gpu.move(comparison._tokenizer)
        with gpu.fake:
            weight = comparison.codebook.weight.to(GPU)
            comparison.codebook = Codebook(weight, comparison.codebook.metric)
    return model, average


def without_backward(monkeypatch: pytest.MonkeyPatch, trainer: _Trainer) -> None:
    """Gradients of zeros, for a loss that has one and lies on the GPU."""

    def backward(loss: Tensor) -> None:
        assert loss.requires_grad
        assert (loss.device, loss.dtype, loss.shape) == (GPU, torch.float32, ())
        for parameter in trainer._parameters:
            parameter.grad = torch.zeros_like(parameter)

    def grad(term: Tensor, of: Tensor, *, retain_graph: bool) -> tuple[Tensor]:
        assert term.requires_grad
        assert term.device == GPU
        return (torch.zeros_like(of),)

    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", grad)


@pytest.mark.parametrize("kind", CASES)
def test_a_step_on_a_gpu_stays_there_and_waits_for_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = {"ema": 0.9, "grad_accum": 2, "precision": "bf16"}
    with fake_gpu() as gpu:
        run, task, change = CASES[kind](gpu, tmp_path / "run", **loop)
        worker = replace(context(change=change), device=GPU)
        batches = list(worker.open_train(None))[:2]
        model, average = on_gpu(gpu, task)
        monkeypatch.setattr(task, "build_model", lambda *, fresh: model)
        monkeypatch.setattr("trainers.loop.build_average", lambda *_, buffers: average)
        monkeypatch.setattr(type(model), "to", lambda self, device: self)  # it is there
        monkeypatch.setattr(_Trainer, "_newest", lambda _: 0)  # a start waits for rank 0
        checkpoints = Checkpoints(run.out, 1)
        with gpu.fake:
            trainer = _Trainer(run, worker, task, checkpoints)
        without_backward(monkeypatch, trainer)
        for batch in batches:
            with gpu.without_waiting():
                trainer._train_step(batch)
            trainer._step += 1
        if kind not in NOT_EVALUATED:
            with gpu.fake:
                moved = batches[0].to(GPU)
            with gpu.without_waiting(), torch.no_grad(), trainer._autocast():
                figures = task.evaluate(model.eval(), moved)
            assert (figures.device, figures.dtype) == (GPU, torch.float32)
            assert len(figures) == len(task.figures)
        trainer.close()
        checkpoints.close()
    for kept in (model, average.module):
        for name, value in kept.state_dict().items():
            assert value.device == GPU, name
            assert value.dtype in (torch.float32, torch.int64), name
    for state in trainer._optimizer.state.values():
        assert {value.device for value in state.values()} == {GPU}
    assert {row.device for *_, row in trainer._pending} == {GPU}
    assert len(trainer._pending) == 2


class _Held(TorchDispatchMode):
    """Bytes on the GPU of live tensors that were made or written to, and the most so far."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._users: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, Tensor) and value.device.type == "cuda":
                storage = value.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if not self._users[key]:
                    self.now += size
                self._users[key] += 1
                self.most = max(self.most, self.now)
                weakref.finalize(value, self._gone, key, size)
        return found

    def _gone(self, key: int, size: int) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            self.now -= size


def test_a_resumed_run_holds_its_checkpoint_in_the_host_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_gpu() as gpu:
        run, task, change = CASES["mtm"](gpu, tmp_path / "run", ema=0.9, log_every=1)
        train(run, context(change=change, should_stop=stops_after(2)), task)
        model, average = on_gpu(gpu, task)
        monkeypatch.setattr(task, "build_model", lambda *, fresh: model)
        monkeypatch.setattr("trainers.loop.build_average", lambda *_, buffers: average)
        monkeypatch.setattr(type(model), "to", lambda self, device: self)
        monkeypatch.setattr(_Trainer, "_newest", lambda _: 1)
        monkeypatch.setattr("trainers.loop.restore_generators", lambda *_: True)  # asks the driver
        checkpoints = Checkpoints(run.out, 1)
        with gpu.fake, _Held() as held:
            trainer = _Trainer(run, replace(context(change=change), device=GPU), task, checkpoints)
        optimizer = [one for state in trainer._optimizer.state.values() for one in state.values()]
        states = [*model.state_dict().values(), *average.module.state_dict().values(), *optimizer]
        assert {value.device for value in states} == {GPU}
        sizes = [value.untyped_storage().nbytes() for value in states]
        assert sum(sizes) <= held.most <= sum(sizes) + max(sizes)
        trainer.close()
        checkpoints.close()
