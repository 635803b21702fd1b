"""Two streams of one process over the same rows: neither notices when the other one ends."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.plan import epoch
from services.plan.epoch import OrderSpec
from services.shards.store import LocalStore
from services.stream.ahead import FETCHES
from services.stream.batch import StreamBatch
from services.stream.loader import Stream
from services.stream.request import StreamRequest
from tests.stream.conftest import write_small

pytestmark = pytest.mark.timeout(120)


def test_what_one_still_needs_is_fetched_side_by_side_when_the_other_one_ends(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch, "LOOK_AHEAD_ROWS", 24)  # a step: nothing of the later windows
    many = write_small(tmp_path, "many", [8] * 32, classes=["a"])
    order = OrderSpec(seed=5, global_batch_rows=24, block_rows=4, lanes=2, window_shards=8)
    ours = replace(world, root=tmp_path, datasets={"many": many}, cache=tmp_path / "c", order=order)
    weights = str(world.root / "tokenadapt.safetensors")
    request = StreamRequest(ours.rows("many"), ours.recipe("finetune"), weights)
    begun, may_end, by = threading.Semaphore(0), threading.Event(), list[str]()
    read = LocalStore.read

    def gated(store: LocalStore, path: str) -> bytes:
        if path.startswith("shards/"):
            by.append(threading.current_thread().name)
            begun.release()
            assert may_end.wait(60)
        return read(store, path)

    monkeypatch.setattr(LocalStore, "read", gated)
    may_end.set()
    closed = iter(Stream(request, stop=8, prefetch=1))
    assert next(closed).step == 0
    may_end.clear()
    while begun.acquire(blocking=False):
        pass
    steps = {"start": 7, "stop": 10}  # of the second windows: 16 shards at once
    found: list[StreamBatch] = []
    reader = threading.Thread(target=lambda: found.extend(Stream(request, **steps, prefetch=1)))
    reader.start()
    for _ in range(FETCHES):
        assert begun.acquire(timeout=60)
    closed.close()  # type: ignore[attr-defined]
    may_end.set()
    reader.join(60)
    assert [batch.step for batch in found] == [7, 8, 9]
    assert all(name.startswith("seit-ahead") for name in by), by
    assert len(by) == len(many.shards)
    for one, again in zip(found, Stream(request, **steps), strict=True):
        assert np.array_equal(one.rows, again.rows)
