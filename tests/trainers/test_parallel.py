"""Shards (FSDP2) against copies (DDP): the same losses, and either goes on from the other."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from services.errors import InvalidInputError
from tests.trainers.runs import CLASSES, SPEC, classify_run, context, mtm_run
from tests.trainers.test_loop import losses, stops_after
from trainers.checkpoint import Checkpoints, load_export
from trainers.config import ClusterConfig, Run
from trainers.loop import train
from trainers.models.classifier import ClassifierConfig, TokenClassifier
from trainers.models.mtm import MTM, MTMConfig
from trainers.models.segmenter import SegmenterConfig, TokenSegmenter, even_depths
from trainers.models.sizes import ViTSize
from trainers.parallel import Kind, _blocks, compile_model
from trainers.step import ClassifyTask, MtmTask
from trainers.task import Task

WORLD, TOTAL = 2, 6
MODELS = ("mtm", "classify")
PARTS: dict[str, list[tuple[Kind, int]]] = {
    "copies": [("ddp", 99)],
    "shards": [("fsdp", 99)],
    "there": [("ddp", 3), ("fsdp", 99)],
    "back": [("fsdp", 2), ("ddp", 2), ("fsdp", 99)],
}
"""Runs in parts: how each is spread over the ranks, and before which of its steps it stops."""


def _run(model: str, out: Path, kind: Kind) -> tuple[Run, Task]:
    options = {"ema": 0.9, "grad_accum": 2, "log_every": 1}
    cluster = ClusterConfig(workers=WORLD, parallel=kind)
    if model == "mtm":
        pretraining = replace(mtm_run(out, **options), cluster=cluster)
        return pretraining, MtmTask(pretraining, SPEC)
    tuning = replace(classify_run(out, **options), cluster=cluster)
    # Layer decay makes many groups, with one parameter in some.
    tuning = replace(tuning, optim=replace(tuning.optim, layer_decay=0.8, clip=0.5))
    return tuning, ClassifyTask(tuning, SPEC, CLASSES)


def _rank(rank: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/rendezvous", WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    for model in MODELS:
        for name, parts in PARTS.items():
            for kind, steps in parts:
                run, task = _run(model, Path(folder, model, name), kind)
                place = context(rank=rank, world=WORLD, should_stop=stops_after(steps))
                train(run, place, task)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FOLDER/model/name of each run above, all trained by the same two processes."""
    folder = tmp_path_factory.mktemp("parallel")
    mp.spawn(_rank, args=(str(folder),), nprocs=WORLD)
    return folder


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["shards", "there", "back"])
def test_shards_train_like_copies_and_either_goes_on_from_the_other(
    model: str, name: str, trained: Path
) -> None:
    out, copies = trained / model / name, trained / model / "copies"
    expected = losses(copies)
    assert len(expected) == TOTAL
    for ours, theirs in zip(losses(out), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    reference, about = load_export(str(copies))
    tensors, said = load_export(str(out))
    assert said.keys() == about.keys()
    assert tensors.keys() == reference.keys()
    for tensor, value in tensors.items():
        if tensor.endswith("qkv.bias"):  # of keys: no gradient but rounding, which Adam magnifies
            continue
        assert torch.allclose(value, reference[tensor], atol=2e-5), tensor


@pytest.mark.parametrize("model", MODELS)
def test_a_sharded_runs_checkpoint_has_the_form_of_any_other(model: str, trained: Path) -> None:
    forms, figures = [], []
    for name in ("copies", "shards"):
        saved = Checkpoints(str(trained / model / name), 2).load(TOTAL)
        assert saved.ema is not None
        tensors = {"model": saved.model, "ema": saved.ema, **saved.optimizer["state"]}
        shapes = {
            part: {key: (value.shape, value.dtype) for key, value in held.items()}
            for part, held in tensors.items()
        }
        forms.append((shapes, saved.optimizer["param_groups"]))
        figures.append(saved.metrics)
    assert forms[0] == forms[1]
    for figure, value in figures[0].items():
        if figure.startswith("validation_"):
            assert figures[1][figure] == pytest.approx(value, rel=1e-4), figure


def test_blocks_are_found_wherever_they_stand() -> None:
    size = ViTSize(dim=16, depth=5, heads=2)
    config = ClassifierConfig("ids", (8, 8), 64, 16, 5, size)
    classifier, mtm = TokenClassifier(config), MTM(MTMConfig((8, 8), 64, 16, size, size))
    segmenter = TokenSegmenter(
        SegmenterConfig(config, even_depths(5), pixels=(2, 2), decoder=8, auxiliary=8)
    )
    assert _blocks(classifier) == list(classifier.blocks)
    assert _blocks(mtm) == [*mtm.blocks, *mtm.decoder_blocks]
    assert _blocks(segmenter) == list(segmenter.encoder.blocks)


@pytest.mark.parametrize("depth", [12, 24])
@pytest.mark.parametrize("drop_path", [0.0, 0.1])
def test_every_block_is_compiled_in_training_and_evaluation(depth: int, drop_path: float) -> None:
    size = ViTSize(dim=8, depth=depth, heads=2)
    config = ClassifierConfig("ids", (4, 4), 16, 8, 3, size, drop_path=drop_path)
    torch.compiler.reset()
    compiled: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        def runs(*args: torch.Tensor) -> object:
            compiled.append(graph)
            return graph.forward(*args)

        return runs

    model, real = TokenClassifier(config), torch.nn.Module.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.Module,
            "compile",
            lambda self, **more: real(self, backend=backend, **more),
        )
        compile_model(model, "fsdp")
    for training in (True, False, True):
        model.train(training)
        compiled.clear()
        with torch.set_grad_enabled(training):
            model(torch.randint(16, (2, 4, 4)))
        assert len(compiled) == depth
    torch.compiler.reset()


def test_a_single_worker_has_nothing_to_shard() -> None:
    with pytest.raises(InvalidInputError, match=r"cluster\.parallel is 'fsdp'.*single worker"):
        ClusterConfig(parallel="fsdp")
