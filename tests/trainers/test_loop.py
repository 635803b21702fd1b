"""The loop on lists of batches: resuming, ranks, weights, clipping, divergence, validation."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from services.errors import CursorMismatchError, InvalidInputError
from services.shards.store import open_store
from services.stream.batch import StreamBatch
from tests.trainers.runs import (
    PER_EPOCH,
    ROWS,
    ToyTask,
    classify_run,
    context,
    make_batch,
    recorded,
)
from trainers.checkpoint import (
    BEST,
    Checkpoints,
    checkpoint_steps,
    load_checkpoint,
    load_export,
)
from trainers.config import Run
from trainers.loop import DivergedError, train
from trainers.task import better

TOTAL = 2 * PER_EPOCH


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_export(str(out))[0]


def stops_after(times: int) -> Any:
    """A `should_stop` that says yes when it is asked the `times`-th time."""
    asked = iter(range(1, 10**6))
    return lambda: next(asked) >= times


def with_optim(run: Run, **changes: Any) -> Run:
    return replace(run, optim=replace(run.optim, **changes))


@pytest.mark.parametrize(
    ("asked", "stop"),
    [
        (1, 0),
        (2, 1),
        (3, 2),
        (4, 3),
        (7, 3),
        (8, 3),
        (9, 4),
        (11, 6),
        (14, 6),
    ],  # before each step; a validation asks 4 times
)
def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path: Path, asked: int, stop: int) -> None:
    options = {"ema": 0.5, "grad_accum": 2, "log_every": 2}
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    figures = train(classify_run(whole, **options), context(), ToyTask())
    run = classify_run(parted, **options)
    first = train(run, context(should_stop=stops_after(asked)), ToyTask())
    assert (first["step"], first["finished"]) == (stop, 0.0)
    assert not (parted / "model.safetensors").exists()
    torch.manual_seed(99)  # whatever another process's generator holds
    last = train(run, context(), ToyTask())
    assert last["validation_loss"] == figures["validation_loss"]
    assert losses(parted) == losses(whole)
    assert everything(parted) == everything(whole)  # each validation too, made once
    assert last["best"] == figures["best"]
    saved = [load_checkpoint(open_store(f"{out}/checkpoints"), BEST) for out in (parted, whole)]
    assert saved[0].step == saved[1].step
    assert {k: v.tolist() for k, v in weights(parted).items()} == {
        k: v.tolist() for k, v in weights(whole).items()
    }


def test_while_a_node_leaves_each_reading_saves(tmp_path: Path) -> None:
    run = classify_run(tmp_path, log_every=2, checkpoint_every=100, validate_every=100, keep=9)
    train(run, context(node_leaves=stops_after(2)), ToyTask())  # readings after steps 2, 4 and 6
    assert checkpoint_steps(str(tmp_path)) == [4, TOTAL]


def everything(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[tuple[float, ...]]:
    keys = ("step", "epoch", "loss", "lr", "grad_norm")
    return [tuple(entry[key] for key in keys) for entry in recorded(out)]


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    def die(batch: StreamBatch) -> StreamBatch:
        return replace(batch, step=-5) if batch.step == 3 else batch

    whole, killed = classify_run(tmp_path / "whole"), classify_run(tmp_path / "killed", log_every=1)
    train(whole, context(), ToyTask())
    with pytest.raises(CursorMismatchError, match="gave step -5 where step 3 of 6"):
        train(killed, context(change=die), ToyTask())
    assert len(losses(tmp_path / "killed")) == 3  # one step more than the checkpoint holds
    train(killed, context(), ToyTask())
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


class KilledAfterTheLastCheckpoint(ToyTask):
    def lacks(self, out: str) -> bool:
        os._exit(9)


def _killed_at_the_end(out: str) -> None:
    train(classify_run(Path(out)), context(), KilledAfterTheLastCheckpoint())


def test_figures_of_a_checkpoint_stand_when_it_does(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(classify_run(whole), context(), ToyTask())
    process = mp.get_context("spawn").Process(target=_killed_at_the_end, args=(str(killed),))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    train(classify_run(killed), context(), ToyTask())
    first, second = (
        [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        for out in (whole, killed)
    )
    assert second == first
    assert [line["step"] for line in first if "validation_loss" in line] == [PER_EPOCH, TOTAL]


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    run = classify_run(tmp_path)
    figures = train(run, context(), ToyTask())
    again = train(run, context(), ToyTask())
    assert again == figures
    assert len(recorded(tmp_path)) == TOTAL


def _rank(rank: int, world: int, out: str, task: ToyTask | None = None) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    store = dist.FileStore(f"{out}.rendezvous", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    run = classify_run(Path(out), grad_accum=2, ema=0.5)
    try:
        train(run, context(rank=rank, world=world), task or ToyTask(dropout=0.0))
    finally:
        dist.destroy_process_group()


def _other_rank(index: int, world: int, out: str, task: ToyTask | None = None) -> None:
    _rank(index + 1, world, out, task)


def test_two_ranks_train_like_one(tmp_path: Path) -> None:
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    train(classify_run(alone, ema=0.5), context(), ToyTask(dropout=0.0))
    threads = torch.get_num_threads()
    other = mp.spawn(_other_rank, args=(2, str(pair)), join=False)
    _rank(0, 2, str(pair))
    assert other.join(60)
    torch.set_num_threads(threads)
    for ours, theirs in zip(losses(pair), losses(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    one, two = weights(alone), weights(pair)
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    saved = Checkpoints(str(pair), 2).load(TOTAL)
    assert len(saved.rng) == 2


def test_rows_that_do_not_exist_count_nothing(tmp_path: Path) -> None:
    task = ToyTask(dropout=0.0)
    train(with_optim(classify_run(tmp_path), base_lr=1e-12), context(), task)
    torch.manual_seed(0)
    saved = weights(tmp_path)  # the rate is so small that these are the first weights
    model = task.build_model(fresh=True)
    model.load_state_dict(saved)
    batch = make_batch(PER_EPOCH - 1)
    there = batch.rows >= 0
    expected = task._rows(model, batch)[torch.from_numpy(there)].mean().item()
    assert there.sum() == ROWS % 8
    assert recorded(tmp_path)[PER_EPOCH - 1]["loss"] == pytest.approx(expected, rel=1e-5)


def test_parts_of_a_step_add_up_to_the_step(tmp_path: Path) -> None:
    for parts in (1, 3):
        run = classify_run(tmp_path / str(parts), grad_accum=parts)
        train(run, context(), ToyTask(dropout=0.0))
    for one, three in zip(losses(tmp_path / "1"), losses(tmp_path / "3"), strict=True):
        assert one == pytest.approx(three, rel=1e-5)


def test_more_parts_than_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="only 8 rows"):
        train(classify_run(tmp_path, grad_accum=9), context(), ToyTask())


def test_clipping_is_applied(tmp_path: Path) -> None:
    moved = {}
    for clip in (0.0, 1e-12):
        run = with_optim(classify_run(tmp_path / str(clip)), clip=clip, weight_decay=0.0)
        train(run, context(), ToyTask(dropout=0.0))
        entries = recorded(tmp_path / str(clip))
        assert all(entry["grad_norm"] > 1e-3 for entry in entries)  # recorded as it was
        moved[clip] = abs(entries[-1]["loss"] - entries[PER_EPOCH - 1]["loss"])
    # Below AdamW's epsilon a gradient hardly moves a weight.
    assert moved[1e-12] < 1e-4 < moved[0.0]


def test_a_number_that_is_not_finite_names_its_step(tmp_path: Path) -> None:
    class Spoilt(ToyTask):
        def loss(self, model: nn.Module, batch: StreamBatch) -> torch.Tensor:
            return super().loss(model, batch) * (math.nan if batch.step == 3 else 1.0)

    run = classify_run(tmp_path, log_every=2)
    with pytest.raises(DivergedError, match=r"step 3 .* no update was made"):
        train(run, context(), Spoilt())
    assert Checkpoints(str(tmp_path), 2).steps() == [2, 3]
    assert last_word(tmp_path) == "failed"
    train(run, context(), ToyTask())
    train(classify_run(tmp_path / "whole"), context(), ToyTask())
    assert losses(tmp_path) == losses(tmp_path / "whole")


def last_word(out: Path, rank: int = 0) -> str:
    state: str = json.loads((out / "streams" / f"rank-{rank}.json").read_text())["state"]
    return state


@pytest.mark.parametrize(
    ("error", "state"), [(RuntimeError("no memory"), "failed"), (KeyboardInterrupt(), "stopped")]
)
def test_a_run_that_an_error_ended_failed(tmp_path: Path, error: BaseException, state: str) -> None:
    with pytest.raises(type(error)):
        train(classify_run(tmp_path), context(), Ends(error))
    assert last_word(tmp_path) == state


@pytest.mark.parametrize(
    ("error", "state"), [(RuntimeError("killed"), "stopped"), (InvalidInputError("no"), "failed")]
)
def test_a_rank_that_only_hears_of_another_s_end_did_not_fail(
    tmp_path: Path, error: Exception, state: str
) -> None:
    out, threads = tmp_path / "run", torch.get_num_threads()
    other = mp.spawn(_other_rank, args=(2, str(out), Ends(error)), join=False)
    with pytest.raises(RuntimeError):
        _rank(0, 2, str(out))
    torch.set_num_threads(threads)
    with pytest.raises(mp.ProcessRaisedException):
        other.join(60)
    assert (last_word(out), last_word(out, 1)) == ("stopped", state)


class Ends(ToyTask):
    """Its first step ends with an error."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def loss(self, model: nn.Module, batch: StreamBatch) -> torch.Tensor:
        raise self._error


class NoNumber(ToyTask):
    """Its validations of the first `epochs` epochs give no number."""

    def __init__(self, epochs: int, *, higher: bool) -> None:
        super().__init__()
        self._left, self.higher = epochs, higher

    def evaluate(self, model: nn.Module, batch: StreamBatch) -> torch.Tensor:
        return super().evaluate(model, batch) * (math.nan if self._left > 0 else 1.0)

    def validated(self, world: int) -> dict[str, float]:
        self._left -= 1
        return {}


@pytest.mark.parametrize("higher", [False, True])
def test_no_number_is_worse_than_any(tmp_path: Path, higher: bool) -> None:
    stopped = context(should_stop=stops_after(2 * PER_EPOCH + 2))  # the first step after that one
    figures = train(classify_run(tmp_path), stopped, NoNumber(1, higher=higher))
    store = open_store(str(tmp_path)).child("checkpoints")
    assert "best" not in figures
    assert not store.exists("best.pt")
    figures = train(classify_run(tmp_path), context(), NoNumber(0, higher=higher))
    assert figures["best"] == figures["validation_loss"]
    best = load_checkpoint(store, "best.pt")
    assert (best.step, best.metrics["best"]) == (TOTAL, figures["best"])


@pytest.mark.parametrize("higher", [False, True])
def test_a_best_that_earlier_programs_noted_as_no_number_is_replaced(higher: bool) -> None:
    assert better(0.5, math.nan, higher=higher)
    assert not better(math.nan, math.nan, higher=higher)
    assert not better(math.nan, 0.5, higher=higher)
    assert better(0.5 + (0.1 if higher else -0.1), 0.5, higher=higher)
    assert not better(0.5, 0.5, higher=higher)


def test_validation_counts_each_row_once(tmp_path: Path) -> None:
    figures = train(classify_run(tmp_path, ema=0.5), context(), ToyTask())
    assert figures["validation_rows"] == 1.0
    model = ToyTask().build_model(fresh=False)
    model.load_state_dict(weights(tmp_path))
    model.eval()
    rows = torch.cat(
        [
            ToyTask()._rows(model, batch)[torch.from_numpy(batch.rows >= 0)]
            for batch in map(make_batch, range(PER_EPOCH))
        ]
    )
    assert len(rows) == ROWS
    assert figures["validation_loss"] == pytest.approx(rows.mean().item(), rel=1e-5)


def test_an_empty_validation_split_is_refused(tmp_path: Path) -> None:
    empty = replace(context(), open_validation=lambda: [])
    with pytest.raises(InvalidInputError, match="has no rows"):
        train(classify_run(tmp_path), empty, ToyTask())


def test_the_rate_warms_up_and_falls_as_a_cosine(tmp_path: Path) -> None:
    train(classify_run(tmp_path, epochs=4), context(epochs=4), ToyTask())
    rates = [entry["lr"] for entry in recorded(tmp_path)]
    top = rates.index(max(rates))
    assert top in (PER_EPOCH - 1, PER_EPOCH)
    assert max(rates) == pytest.approx(0.01)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_another_run_is_not_overwritten(tmp_path: Path) -> None:
    train(classify_run(tmp_path), context(), ToyTask())
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(InvalidInputError, match=r"loop\.seed is 0 there, 1 here"):
        train(classify_run(tmp_path, seed=1), context(), ToyTask())
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_files_of_a_run(tmp_path: Path) -> None:
    train(classify_run(tmp_path, keep=2, precision="bf16"), context(), ToyTask())
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.pt", "step-00000004.pt", "step-00000006.pt"]
    assert list((tmp_path / "tensorboard").iterdir())
    about = load_export(str(tmp_path))[1]
    assert json.loads(about["config"])["kind"] == "ClassifyRun"
    assert json.loads(about["spec"])["codes"] == 11


def test_a_run_on_an_object_store_is_stopped_and_resumed(tmp_path: Path) -> None:
    out = f"memory://{tmp_path}"
    run = replace(classify_run(tmp_path), out=out)
    train(run, context(should_stop=stops_after(3)), ToyTask())
    train(run, context(), ToyTask())
    train(classify_run(tmp_path / "local"), context(), ToyTask())
    store = open_store(out)
    (tmp_path / "metrics.jsonl").write_bytes(store.read("metrics.jsonl"))
    assert losses(tmp_path) == losses(tmp_path / "local")
    assert len(store.list("tensorboard")) == 2  # one file of each part of the run
    assert load_export(out)[1]["step"] == str(TOTAL)
