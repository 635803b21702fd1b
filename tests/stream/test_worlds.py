"""Workers come and go at uneven steps: the steps of the run stay the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.stream.batch import StreamBatch
from services.stream.loader import Stream, resume_step
from services.stream.request import StreamRequest
from tests.stream.test_loader import joined, same

STOP = 19
BLOCKS = 12  # of a step


def twelve_blocks(world: Any, recipe: str) -> StreamRequest:
    request: StreamRequest = world.request(recipe)
    order = replace(request.rows.order, block_rows=2)
    return replace(request, rows=replace(request.rows, order=order))


def run(request: StreamRequest, plan: list[tuple[int, int]]) -> list[StreamBatch]:
    """Groups of (workers, steps) one after the other, each from the cursor of the one before."""
    found: list[StreamBatch] = []
    saved = Stream(request, stop=STOP).cursor(0)
    for workers, steps in [*plan, (1, STOP)]:
        start, _ = resume_step(request.rows, saved)
        stop = min(STOP, start + steps)
        if start == stop:
            continue
        ranks = [
            Stream(request, rank=rank, world=workers, start=start, stop=stop)
            for rank in range(workers)
        ]
        shares = [list(rank) for rank in ranks]
        found += [joined([share[at] for share in shares]) for at in range(stop - start)]
        saved = ranks[-1].cursor(stop)
    return found


@pytest.mark.parametrize("recipe", ["mtm", "scratch"])
def test_one_two_four_three_one_is_one_run(world: Any, recipe: str) -> None:
    request = twelve_blocks(world, recipe)
    whole = list(Stream(request, stop=STOP))
    found = run(request, [(1, 3), (2, 4), (4, 1), (3, 5), (1, 2)])
    assert all(same(a, b) for a, b in zip(found, whole, strict=True))


@settings(max_examples=15, deadline=None)
@given(plan=st.lists(st.tuples(st.integers(1, BLOCKS), st.integers(1, 8)), max_size=6))
def test_any_sequence_of_groups_is_one_run(world: Any, plan: list[tuple[int, int]]) -> None:
    request = twelve_blocks(world, "eval")
    whole = list(Stream(request, stop=7))
    found = run(request, plan)[:7]
    assert all(same(a, b) for a, b in zip(found, whole, strict=True))
