"""The stream's promises, without Ray: same batches for any world, any start, any repetition."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from services.errors import CursorMismatchError, InvalidInputError
from services.stream.augmentation import take_threads
from services.stream.batch import StreamBatch, of_share
from services.stream.fetch import fetch_share
from services.stream.loader import Stream, resume_step

EPOCH_STEPS = 7  # 157 rows in steps of 24


def same(a: StreamBatch, b: StreamBatch) -> bool:
    pairs = [(getattr(a, n), getattr(b, n)) for n in ("inputs", "label", "label_b", "mix")]
    return bool((a.rows == b.rows).all()) and all(torch.equal(x, y) for x, y in pairs)


def joined(parts: list[StreamBatch]) -> StreamBatch:
    tensors = {
        name: torch.cat([getattr(p, name) for p in parts])
        for name in ("inputs", "label", "label_b", "mix", "weight")
    }
    rows, epochs = (np.concatenate([getattr(p, n) for p in parts]) for n in ("rows", "row_epochs"))
    return StreamBatch(parts[0].step, parts[0].epoch, rows, epochs, **tensors)


def test_each_epoch_holds_every_row_once_and_says_which(world: Any) -> None:
    batches = list(Stream(world.request("eval"), stop=2 * EPOCH_STEPS))
    assert [b.step for b in batches] == list(range(2 * EPOCH_STEPS))
    for epoch in (0, 1):
        rows = np.concatenate([b.rows for b in batches if b.epoch == epoch])
        assert Counter(rows[rows >= 0].tolist()) == Counter(range(len(world.ids)))
        tail = batches[(epoch + 1) * EPOCH_STEPS - 1]
        assert tail.weight.tolist() == (tail.rows >= 0).astype(float).tolist()
    for batch in batches:
        there = batch.rows >= 0
        cut = world.ids[batch.rows[there]][:, 1:7, 1:7].astype(np.int64)
        assert (batch.inputs.numpy()[there] == cut).all()
        assert (batch.label.numpy()[there] == world.labels[batch.rows[there]]).all()


@pytest.mark.parametrize("recipe", ["mtm", "finetune", "scratch"])
@pytest.mark.parametrize("workers", [2, 3, 4, 5, 6])
def test_ranks_share_out_the_same_steps(world: Any, recipe: str, workers: int) -> None:
    request = world.request(recipe)
    whole = list(Stream(request, stop=3))
    ranks = [list(Stream(request, rank=r, world=workers, stop=3)) for r in range(workers)]
    for step, batch in enumerate(whole):
        assert same(joined([rank[step] for rank in ranks]), batch)


@pytest.mark.parametrize("group_rows", [1, 24, 49, 200])
def test_steps_that_are_read_together_are_those_read_one_by_one(
    world: Any, monkeypatch: pytest.MonkeyPatch, group_rows: int
) -> None:
    request = world.request("crop")
    alone = [fetch_share(request.fetched, step, 0, 1) for step in range(2 * EPOCH_STEPS)]
    monkeypatch.setattr("services.stream.fetch.GROUP_ROWS", group_rows)
    found = list(Stream(request, stop=2 * EPOCH_STEPS))
    assert [batch.step for batch in found] == list(range(2 * EPOCH_STEPS))
    assert all(same(batch, of_share(share)) for batch, share in zip(found, alone, strict=True))
    assert [b.epoch for b in found] == [share.epoch for share in alone]


@pytest.mark.parametrize("recipe", ["mtm", "finetune", "scratch"])
def test_a_stream_taken_up_anywhere_goes_on_as_if_never_left(world: Any, recipe: str) -> None:
    request = world.request(recipe)
    stream = Stream(request, stop=EPOCH_STEPS + 3)
    whole = list(stream)
    for step in range(0, EPOCH_STEPS + 3, 3):
        saved = stream.cursor(step)
        assert len(saved) <= 4096
        rest = list(
            Stream(request, start=resume_step(request.rows, saved)[0], stop=EPOCH_STEPS + 3)
        )
        assert [b.step for b in rest] == list(range(step, EPOCH_STEPS + 3))
        assert all(same(a, b) for a, b in zip(rest, whole[step:], strict=True))


def test_another_seed_is_another_order_and_is_refused_by_a_saved_position(world: Any) -> None:
    request = world.request("eval")
    other = replace(request, rows=replace(request.rows, order=replace(request.rows.order, seed=6)))
    first, second = next(iter(Stream(request))), next(iter(Stream(other)))
    assert (first.rows != second.rows).any()
    with pytest.raises(CursorMismatchError, match="seed"):
        resume_step(other.rows, Stream(request).cursor(2))


@pytest.mark.parametrize(
    ("blocks", "workers", "said"),
    [
        (6, 4, "the largest share of 2, and 3 workers would take no longer"),
        (32, 15, "the largest share of 3, and 11 workers would take no longer"),
        (8, 3, "the largest share of 3"),  # fewer would have 4, at least
    ],
)
def test_unequal_shares_are_said_to_take_as_long_as_the_largest(
    world: Any, caplog: pytest.LogCaptureFixture, blocks: int, workers: int, said: str
) -> None:
    request = world.request("eval", order=replace(world.order, global_batch_rows=4 * blocks))
    for one in range(1, blocks + 1):
        if blocks % one == 0:
            Stream(request, world=one)
    assert not caplog.messages
    streams = [Stream(request, rank=rank, world=workers) for rank in range(workers)]
    sizes = [len(next(iter(stream))) // 4 for stream in streams]
    assert (max(sizes), max(sizes) - min(sizes)) == (-(-blocks // workers), 1)
    assert [message.partition("as long as ")[2] for message in caplog.messages] == [said]
    assert f"{workers} workers share the {blocks} blocks of a step unequally" in caplog.messages[0]


def test_more_workers_than_blocks_are_refused(world: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"world=7 is outside of \[1, 6\]"):
        Stream(world.request("eval"), world=7)


def test_the_meter_counts_what_was_delivered(world: Any) -> None:
    stream = Stream(world.request("eval"))
    delivered = sum(int(b.weight.sum()) for b in stream)
    flow = stream.meter.snapshot()
    assert flow.rows == delivered == len(world.ids)
    assert (flow.steps, flow.state) == (EPOCH_STEPS, "finished")


def test_a_stream_is_read_once(world: Any) -> None:
    stream = Stream(world.request("eval"))
    rows = sum(int(batch.weight.sum()) for batch in stream)
    with pytest.raises(InvalidInputError, match=r"second time.*open another stream"):
        iter(stream)
    assert stream.flow().rows == rows


@pytest.mark.parametrize("number", [1, 3])
def test_threads_that_one_takes_are_its_own(number: int) -> None:
    before = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=take_threads, initargs=(number,)) as taker:
        # Of a later call, too: torch sets threads up when they first do something.
        taker.submit(torch.ones(100).sum).result()
        assert taker.submit(torch.get_num_threads).result() == number
        with ThreadPoolExecutor(1) as other:
            assert other.submit(torch.get_num_threads).result() == before
    assert torch.get_num_threads() == before
