"""A batch that does not come: the ranks agree, what is computed is saved, and a stop is obeyed."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.errors import CursorMismatchError, InvalidInputError, StoreError
from services.stream.batch import StreamBatch
from services.wire.seit import v1 as wire
from tests.shards.conftest import faulty_s3, s3_bucket, s3_server  # noqa: F401 - fixtures
from tests.shards.faulty_s3 import Fault, FaultyS3
from tests.trainers.runs import PER_EPOCH, ListStream, ToyTask, classify_run, context, make_batch
from tests.trainers.test_loop import everything, losses
from tests.trainers.test_signals import Program, entries, to_the_end
from tests.trainers.test_token_runs import put
from tests.until import until
from trainers import waiting
from trainers.checkpoint import checkpoint_steps
from trainers.loop import WorkerContext, train
from trainers.waiting import Agreement, Word

TOTAL = 2 * PER_EPOCH
RARE: dict[str, Any] = {"checkpoint_every": 100, "log_every": 100, "validate_every": 100, "keep": 9}


@given(st.integers(1, 6), st.data())
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_the_largest_word_of_each_turn_holds_for_all(
    monkeypatch: pytest.MonkeyPatch, world: int, data: st.DataObject
) -> None:
    store = dist.HashStore()
    monkeypatch.setattr(waiting, "_get_default_store", lambda: store)
    turn = st.lists(st.sampled_from(Word), min_size=world, max_size=world)
    runs = data.draw(st.lists(st.lists(turn, max_size=5), min_size=1, max_size=3))

    def rank(number: int) -> list[list[Word]]:
        found = []
        for turns in runs:  # one after the other, as a process may train
            agreement = Agreement(world)
            together.wait()
            found.append([agreement.settle(words[number]) for words in turns])
        return found

    together = threading.Barrier(world)
    with ThreadPoolExecutor(world) as pool:
        heard = list(pool.map(rank, range(world)))
    assert heard == [[[max(words) for words in turns] for turns in runs]] * world
    assert store.num_keys() <= (1 + 2 * len(runs)) * (world > 1)  # of the last turns only


@dataclass
class Held:
    """A stream whose batch `step` does not come before `come` says so, at the latest after 60 s."""

    start: int
    step: int
    rank: int = 0
    world: int = 1
    come: Callable[[], bool] = lambda: False
    wanted: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    steps_per_epoch: int = PER_EPOCH

    def __iter__(self) -> Iterator[StreamBatch]:
        try:
            for step in range(self.start, TOTAL):
                if step == self.step:
                    self.wanted.set()
                    until(self.come, "word that the batch may come")
                yield make_batch(step, self.rank, self.world)
        finally:
            self.ended.set()

    def cursor(self, step: int) -> bytes:
        return ListStream([]).cursor(step)

    def flow(self) -> wire.Flow:
        return ListStream([]).flow()


def trains_on(held: Held, **more: Any) -> WorkerContext:
    return replace(context(**more), open_train=lambda saved: held)


def test_a_stop_is_obeyed_while_a_batch_is_waited_for(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    options = {**RARE, "ema": 0.5, "grad_accum": 2}
    train(classify_run(whole, **options), context(), ToyTask())
    given_up = threading.Event()
    held = Held(0, 4, come=given_up.is_set)
    figures = train(
        classify_run(out, **options), trains_on(held, should_stop=held.wanted.is_set), ToyTask()
    )
    assert (figures["step"], figures["finished"]) == (4, 0.0)
    assert checkpoint_steps(str(out)) == [4]
    assert json.loads((out / "streams" / "rank-0.json").read_text())["state"] == "stopped"
    given_up.set()
    assert held.ended.wait(30), "nobody closed the stream that was left to itself"
    train(classify_run(out, **options), context(), ToyTask())
    assert everything(out) == everything(whole)


def test_while_a_node_leaves_a_batch_that_does_not_come_is_no_loss(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    train(classify_run(whole, **RARE), context(), ToyTask())
    held = Held(0, 4, come=lambda: checkpoint_steps(str(out)) == [4])
    train(classify_run(out, **RARE), trains_on(held, node_leaves=held.wanted.is_set), ToyTask())
    assert checkpoint_steps(str(out)) == [4, TOTAL]
    assert losses(out) == losses(whole)


@pytest.mark.parametrize("told", ["to stop", "that a node leaves"])
def test_the_same_in_a_validation(tmp_path: Path, told: str) -> None:
    """The last one, of the whole run: `lacks` asks for no further one, the loop does."""
    out, wanted = tmp_path / "run", threading.Event()

    def batches() -> Iterator[StreamBatch]:
        yield make_batch(0)
        wanted.set()
        until(lambda: checkpoint_steps(str(out)), "checkpoint")
        yield from (make_batch(step) for step in range(1, PER_EPOCH))

    how = {"should_stop" if told == "to stop" else "node_leaves": wanted.is_set}
    held = replace(context(**how), open_validation=batches)  # type: ignore[arg-type]
    first = train(classify_run(out, **RARE), held, ToyTask())
    assert (first["step"], checkpoint_steps(str(out))) == (TOTAL, [TOTAL])
    assert first["finished"] == float(told != "to stop")
    train(classify_run(out, **RARE), context(), ToyTask())
    train(classify_run(tmp_path / "whole", **RARE), context(), ToyTask())
    assert everything(out) == everything(tmp_path / "whole")


def _rank(rank: int, world: int, port: int, folder: str) -> None:
    """One of several whose last one waits for its batch; what they are told, only that one is."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    for told in ("should_stop", "node_leaves"):
        out = Path(folder, told)
        saved = lambda out=out: checkpoint_steps(str(out)) == [4]  # noqa: E731
        held = Held(0, 4 if rank == world - 1 else -1, rank, world, come=saved)
        place = trains_on(held, rank=rank, world=world, **{told: held.wanted.is_set})
        figures = train(classify_run(out, **RARE), place, ToyTask(dropout=0.0))
        assert figures["step"] == (4 if told == "should_stop" else TOTAL)
    train(
        classify_run(Path(folder, "should_stop"), **RARE),
        context(rank=rank, world=world),
        ToyTask(dropout=0.0),
    )
    dist.destroy_process_group()


def test_ranks_that_have_their_batch_hear_of_it_too(tmp_path: Path) -> None:
    train(classify_run(tmp_path / "alone", **RARE), context(), ToyTask(dropout=0.0))
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    mp.spawn(_rank, args=(2, store.port, str(tmp_path)), nprocs=2)
    for out in (tmp_path / "should_stop", tmp_path / "node_leaves"):
        assert checkpoint_steps(str(out)) == [4, TOTAL]
        for ours, theirs in zip(losses(out), losses(tmp_path / "alone"), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)


class Down:
    """A storage that answers no request for a shard any more, once it gave out some."""

    def __init__(self, shards: int) -> None:
        self._left, self.refused = shards, 0

    def choose(self, verb: str, path: str) -> Fault | None:
        if verb != "GET" or ".parquet" not in path:
            return None
        self._left -= 1
        self.refused += self._left < 0
        return "stall" if self._left < 0 else None


@pytest.mark.timeout(300)
def test_sigterm_ends_a_program_whose_storage_is_down(
    tmp_path: Path,
    faulty_s3: FaultyS3,  # noqa: F811
    s3_bucket: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faulty_s3.url)
    monkeypatch.setenv("SEIT_CACHE_DIR", str(tmp_path / "cache"))
    put(tmp_path / "data", "big", shards=12, rows=32)
    files = fsspec.filesystem("s3", endpoint_url=faulty_s3.url, skip_instance_cache=True)
    files.put(str(tmp_path / "data"), f"{s3_bucket}/data", recursive=True)
    words = (
        *("--order.window-shards", "1", "--loop.epochs", "2", "--loop.checkpoint-every", "1000"),
        *("--data.root", f"s3://{s3_bucket}/data"),
    )
    faulty_s3.chaos = down = Down(5)  # type: ignore[assignment]
    program = Program(tmp_path, *words).past(1)
    # Those under way at once, and one of them again: by then what could be trained is trained.
    said = program.until(lambda: down.refused > 8).sent(signal.SIGTERM)
    step = program.saved()
    assert 0 < step == program.steps()[-1] < 24
    assert f"stopped after step {step}, which is saved" in said
    assert "failed 12 times" not in said  # it did not wait until the storage was given up
    faulty_s3.chaos = None
    to_the_end(tmp_path, *words)
    to_the_end(tmp_path, *words, out="whole")
    assert entries(program.out) == entries(tmp_path / "whole")


@dataclass
class Ending(Held):
    """A stream that holds no batch back, but whose end is what `end` does."""

    end: Callable[[], None] = lambda: None
    state: str = "running"

    def __iter__(self) -> Iterator[StreamBatch]:
        try:
            yield from super().__iter__()
        finally:
            self.end()
            self.state = "finished"

    def flow(self) -> wire.Flow:
        return replace(super().flow(), state=self.state, rows=1)


def test_a_finished_run_waits_for_its_streams_end_and_hears_of_a_stop_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray takes its time to end actors: whoever looks at the stats sees a run that finished."""
    monkeypatch.setattr(waiting, "_LEAVE_SECONDS", 0.0)
    ends, looked = threading.Event(), threading.Event()

    def end() -> None:
        ends.set()
        assert looked.wait(30), "nobody waited for the stream's end"

    def should_stop() -> bool:
        if ends.is_set():
            looked.set()
        return False

    held = trains_on(Ending(0, -1, end=end), should_stop=should_stop)
    figures = train(classify_run(tmp_path, **RARE), held, ToyTask())
    assert figures["finished"]
    assert json.loads((tmp_path / "streams" / "rank-0.json").read_text())["state"] == "finished"


class Watched(ToyTask):
    def build_model(self, *, fresh: bool) -> torch.nn.Module:
        model = super().build_model(fresh=fresh)
        self.model = weakref.ref(model)
        return model


def test_an_error_of_the_stream_keeps_no_model_alive(tmp_path: Path) -> None:
    def fails() -> bool:
        raise StoreError("the storage is down")

    task = Watched()
    gc.disable()
    try:
        with pytest.raises(StoreError) as raised:
            train(classify_run(tmp_path, **RARE), trains_on(Held(0, 4, come=fails)), task)
        del raised
        assert task.model() is None
    finally:
        gc.enable()


class Refuses(ToyTask):
    def check(self, batch: StreamBatch) -> None:
        if batch.step == 2:
            raise InvalidInputError("a row of step 2")


@pytest.mark.parametrize(
    ("task", "raised"), [(Refuses(), InvalidInputError), (ToyTask(), RuntimeError)]
)
def test_an_end_that_fails_hides_no_error(
    tmp_path: Path, task: ToyTask, raised: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:

    def end() -> None:
        raise RuntimeError("the cluster is gone")

    with pytest.raises(raised):
        train(classify_run(tmp_path, **RARE), trains_on(Ending(0, -1, end=end)), task)
    assert (raised is RuntimeError) != ("the cluster is gone" in caplog.text)


class NoBetter(ToyTask):
    def evaluate(self, model: torch.nn.Module, batch: StreamBatch) -> torch.Tensor:
        return torch.ones_like(super().evaluate(model, batch))


def test_what_was_kept_in_a_validation_is_not_validated_again(tmp_path: Path) -> None:
    """The last but one of three: no better than the first, so that nothing else saves it."""
    opened, leaves, options = iter(range(9)), threading.Event(), {**RARE, "validate_every": 1}
    run = classify_run(tmp_path, **options, epochs=3)

    def batches() -> Iterator[StreamBatch]:
        first = next(opened) == 0
        for step in range(PER_EPOCH):
            if step == 1 and not first:
                leaves.set()
                until(lambda: TOTAL in checkpoint_steps(str(tmp_path)), "checkpoint")
                leaves.clear()
            yield make_batch(step)

    def dies(batch: StreamBatch) -> StreamBatch:
        return replace(batch, step=-1) if batch.step == TOTAL else batch

    held = context(3, node_leaves=leaves.is_set, change=dies)
    with pytest.raises(CursorMismatchError):
        train(run, replace(held, open_validation=batches), NoBetter())
    assert checkpoint_steps(str(tmp_path)) == [PER_EPOCH, TOTAL]
    train(run, context(3), NoBetter())
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    steps = [line["step"] for line in lines if "validation_loss" in line]
    assert steps == [PER_EPOCH, TOTAL, 3 * PER_EPOCH]
