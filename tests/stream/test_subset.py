"""A subset through the stream: its rows and no others, on any ranks, from any step on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.errors import CursorMismatchError, FormatError, InvalidInputError
from services.plan.subset import SubsetSpec
from services.shards.reader import DatasetReader
from services.stream.fetch import opened
from services.stream.loader import Stream, resume_step
from services.stream.request import RowsRequest, StreamRequest
from tests.stream.test_loader import joined, same

ROWS = 65  # of the 157 of "tiny": three steps of 24 rows


def subset_request(world: Any, rows: int = ROWS, seed: int = 0) -> StreamRequest:
    request: StreamRequest = world.request("crop")
    source = replace(request.rows.sources[0], subset=SubsetSpec(rows, seed))
    return replace(request, rows=replace(request.rows, sources=(source,)))


def whole_grids(request: RowsRequest, steps: range) -> list[tuple[bytes, int]]:
    """(ids, label) of each row that exists in these steps."""
    sources = opened(request)
    found = []
    for step in steps:
        spans = sources.plan.step_spans(step)
        rows = np.concatenate([span.rows for span in spans])
        taken = sources.take(rows, np.zeros(len(rows), np.int64))
        found += [
            (ids.tobytes(), int(label))
            for ids, label, row in zip(taken.ids, taken.labels, taken.rows, strict=True)
            if row >= 0
        ]
    return found


@pytest.mark.parametrize("rows", [1, 23, ROWS, 157])
def test_each_pass_is_the_subset_and_the_run_is_as_long_as_with_all_rows(
    world: Any, rows: int
) -> None:
    request = subset_request(world, rows)
    stream = Stream(request)
    whole = Stream(world.request("crop"))
    assert stream.steps_per_epoch == whole.steps_per_epoch == 7
    own = opened(request.rows).plan.steps_per_epoch
    assert own == -(-rows // 24)
    known = {
        (ids.tobytes(), int(label)) for ids, label in zip(world.ids, world.labels, strict=True)
    }
    passes = [whole_grids(request.rows, range(own * n, own * (n + 1))) for n in (0, 1)]
    assert Counter(passes[0]) == Counter(passes[1])
    assert len(passes[0]) == rows
    assert set(passes[0]) <= known
    labels = Counter(label for _, label in passes[0])
    available = Counter(world.labels.tolist())
    most = max(labels.values())
    assert all(labels[c] in (most, most - 1, available[c]) for c in available)
    assert [batch.epoch for batch in stream] == [step // own for step in range(7)]


def test_ranks_and_resumed_streams_share_out_the_same_steps(world: Any) -> None:
    request = subset_request(world)
    whole = list(Stream(request, stop=9))
    for workers in (2, 3):
        ranks = [list(Stream(request, rank=r, world=workers, stop=9)) for r in range(workers)]
        for step, batch in enumerate(whole):
            assert same(joined([rank[step] for rank in ranks]), batch)
    for at in range(9):
        saved = Stream(request, stop=9).cursor(at)
        start, _ = resume_step(request.rows, saved)
        again = Stream(request, start=start, stop=9)
        assert all(same(a, b) for a, b in zip(again, whole[at:], strict=True))


def test_a_position_in_another_subset_is_refused(world: Any) -> None:
    saved = Stream(subset_request(world)).cursor(2)
    for other in (subset_request(world, 66), subset_request(world, seed=1), world.request("crop")):
        with pytest.raises(CursorMismatchError, match="subset_"):
            resume_step(other.rows, saved)


def test_a_source_of_a_mixture_may_be_a_subset(world: Any) -> None:
    request = world.request("crop", "tiny", "birds")
    tiny, birds = request.rows.sources
    part = replace(request.rows, sources=(replace(tiny, subset=SubsetSpec(30)), birds))
    sources = opened(part)
    assert sources.plan.rows == 30 + 63
    assert sources.steps_per_epoch == opened(request.rows).plan.steps_per_epoch
    seen = np.concatenate([s.rows for n in range(40) for s in sources.plan.step_spans(n)])
    rows = np.unique(seen[seen >= 0])
    assert rows.tolist() == list(range(93))
    taken = sources.take(rows, np.zeros(93, np.int64))
    bird_ids = world.datasets["birds"].ids
    assert (taken.ids[30:] == bird_ids).all()
    assert {grid.tobytes() for grid in taken.ids[:30]} <= {grid.tobytes() for grid in world.ids}


def test_shards_without_a_row_of_the_subset_are_never_read(world: Any, tmp_path: Path) -> None:
    request = replace(subset_request(world, 5).rows, cache_dir=str(tmp_path))
    sources = opened(request)
    for step in range(4):
        spans = sources.plan.step_spans(step)
        sources.take(np.concatenate([s.rows for s in spans]), np.zeros(24, np.int64))
    read = {path.name for path in tmp_path.rglob("*.rows")}
    assert len(read) == np.count_nonzero(sources.plan.shard_rows) < 5


def test_more_rows_than_there_are_is_refused(world: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"158 rows .* has 157"):
        opened(subset_request(world, 158).rows)


def test_a_manifest_that_miscounts_labels_is_refused(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(subset_request(world, 60).rows, cache_dir=str(tmp_path))
    shard = DatasetReader.shard

    def relabelled(reader: DatasetReader, number: int) -> Any:
        found = shard(reader, number)
        monkeypatch.setattr(found, "_labels_N", np.zeros_like(found.labels))
        return found

    monkeypatch.setattr(DatasetReader, "shard", relabelled)
    with pytest.raises(FormatError, match="other labels than the manifest counts"):
        whole_grids(request, range(3))
