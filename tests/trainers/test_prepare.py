"""What a classifier's command refuses before any work: nothing is written, the exit code is 2."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.shards.manifest import commit, load_manifest
from services.shards.store import open_store
from services.shards.writer import build_split, write_shard
from services.types import UNLABELLED, TokenRows
from tests.trainers.test_loop import stops_after
from tests.trainers.test_token_runs import SPEC, put
from trainers.command import run
from trainers.config import ClassifyRun
from trainers.context import Place
from trainers.models.classifier import ClassifierConfig, TokenClassifier
from trainers.models.mtm import MTM, MTMConfig
from trainers.models.sizes import ViTSize
from trainers.models.weights import dump_published
from trainers.program import INTERRUPTED
from trainers.recipes.classify import RECIPES
from trainers.step import classify_worker, prepare_classify

ENCODER = ViTSize(32, 1, 2)
SMALL = (
    *("--recipe", "finetune-tiny", "--cluster.no-ray", "--optim.warmup-epochs", "0"),
    *("--order.global-batch", "16", "--order.block", "4", "--order.lanes", "2"),
    *("--loop.epochs", "1", "--loop.log-every", "1", "--loop.checkpoint-every", "1"),
    *("--model.depth", "1", "--model.width", "32", "--model.heads", "2"),
    *("--data.dataset", "set"),
)
Command = Callable[..., tuple[int, str]]


def stopped(config: ClassifyRun, place: Place) -> dict[str, float]:
    """One step is made."""
    return classify_worker(config, replace(place, should_stop=stops_after(2)))


@pytest.fixture
def command(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Command:
    monkeypatch.setenv("SEIT_CACHE_DIR", str(tmp_path / "cache"))
    put(tmp_path / "data", "set", shards=2, rows=16)

    def call(*argv: str) -> tuple[int, str]:
        caplog.clear()
        given = (*SMALL, "--out", str(tmp_path / "run"), "--data.root", str(tmp_path / "data"))
        with caplog.at_level(logging.INFO):
            code = run(ClassifyRun, RECIPES, stopped, prepare_classify, (*given, *argv))
        return code, caplog.text

    return call


def mtm(grid: int = 8, codes: int = 32, size: ViTSize = ENCODER) -> MTM:
    torch.manual_seed(1)
    return MTM(MTMConfig((grid, grid), codes, 8, size, ViTSize(16, 1, 2)))


def saved(folder: Path, model: MTM | TokenClassifier) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "published.pth").write_bytes(dump_published(model))
    return str(folder / "published.pth")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (mtm(codes=33), "word_embeddings.weight is (33, 8), the model's is (32, 8)"),
        (mtm(size=ViTSize(64, 1, 2)), "is (1, 1, 64), the model's is (1, 1, 32)"),
        (mtm(size=ViTSize(32, 2, 2)), "blocks.1.norm1.weight has no place in the model"),
        (mtm(grid=6), "was trained on 9 patches, this model has 16 (4, 4)"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(
    command: Command, tmp_path: Path, model: MTM, said: str
) -> None:
    code, shown = command("--model.init", saved(tmp_path, model))
    assert code == 2
    assert said in shown
    assert not (tmp_path / "run").exists()


def test_a_published_checkpoint_starts_a_run_and_is_not_needed_to_resume_it(
    command: Command, tmp_path: Path
) -> None:
    init = saved(tmp_path / "downloads", mtm())
    assert command("--model.init", init)[0] == INTERRUPTED
    Path(init).unlink()
    assert command("--model.init", init)[0] in (0, INTERRUPTED)


def test_a_classifier_of_other_classes_and_another_grid_starts_one_where_that_is_allowed(
    command: Command, tmp_path: Path
) -> None:
    other = TokenClassifier(ClassifierConfig("ids", (6, 6), 32, 8, 7, ENCODER))
    init = saved(tmp_path / "downloads", other)
    assert command("--model.init", init)[0] == 2
    assert command("--model.init", init, "--model.resize-positions")[0] == INTERRUPTED


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_dataset_with_unlabelled_rows_is_refused(
    command: Command, tmp_path: Path, split: str
) -> None:
    store = open_store(str(tmp_path / "data"))
    stands = load_manifest(store, "set").manifest
    rows = TokenRows(
        ids=torch.zeros(6, SPEC.grid_height, SPEC.grid_width).numpy().astype("uint16"),
        labels=torch.tensor([0, 1, UNLABELLED, 0, 1, UNLABELLED]).numpy(),
        keys=[str(number) for number in range(6)],
        source_bytes=torch.zeros(6, dtype=torch.int64).numpy(),
    )
    shard = write_shard(store, "set", split, rows, SPEC)
    splits = [each for each in stands.splits if each.name != split]
    splits.append(build_split(store, "set", split, [shard], SPEC.codes))
    commit(store, replace(stands, version=0, splits=splits))
    code, shown = command()
    assert code == 2
    assert f"2 of the 6 rows of set/{split} have no label" in shown
    assert not (tmp_path / "run").exists()


def test_a_dataset_without_classes_is_refused(command: Command, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "data"))
    stands = load_manifest(store, "set").manifest
    commit(store, replace(stands, version=0, classes=[]))
    code, shown = command()
    assert code == 2
    assert "has no classes" in shown
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_refused_and_left_as_it_is(
    command: Command, tmp_path: Path
) -> None:
    assert command()[0] == INTERRUPTED
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    code, shown = command("--optim.base-lr", "0.5")
    assert code == 2
    assert "holds another run: optim.base_lr" in shown
    for path, data in before.items():
        assert path.read_bytes() == data
