"""Several datasets in one stream: every rank, every step, each source's own epochs, classes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from services.errors import CursorMismatchError, InvalidInputError
from services.plan.cursor import DATASET_VERSION
from services.plan.mixture import CYCLE, shares_of
from services.stream.batch import StreamBatch
from services.stream.fetch import opened
from services.stream.loader import Stream, resume_step
from services.stream.request import SourceRequest
from tests.stream.conftest import SPEC, codebook_bytes, write_small
from tests.stream.test_loader import joined, same

ALL = ("tiny", "birds", "cars")
MIXTURES = [
    (("tiny", "birds"), ()),
    (("birds", "tiny"), (1.0, 3.0)),
    (ALL, ()),
    (ALL, (1.0, 1.0, 5.0)),
    (("cars", "birds", "tiny"), (0.2, 0.5, 0.3)),
]


def begins(world: Any, names: tuple[str, ...]) -> list[int]:
    return np.cumsum([0, *(len(world.datasets[name].ids) for name in names)]).tolist()


@pytest.mark.parametrize(("names", "weights"), MIXTURES)
def test_ranks_share_out_the_same_steps(
    world: Any, names: tuple[str, ...], weights: tuple[float, ...]
) -> None:
    request = world.request("crop", *names, weights=weights)
    whole = list(Stream(request, stop=20))
    for workers in (2, 3, 6):
        ranks = [list(Stream(request, rank=r, world=workers, stop=20)) for r in range(workers)]
        for step, batch in enumerate(whole):
            assert same(joined([rank[step] for rank in ranks]), batch)


def test_pairings_of_a_recipe_stay_inside_a_source(world: Any) -> None:
    request = world.request("finetune", *ALL, weights=(1.0, 2.0, 1.0))
    whole = list(Stream(request, stop=4))
    halves = [list(Stream(request, rank=rank, world=2, stop=4)) for rank in (0, 1)]
    bounds = begins(world, ALL)
    for step, batch in enumerate(whole):
        assert same(joined([half[step] for half in halves]), batch)
        for block in batch.rows.reshape(-1, world.order.block_rows):
            sources = np.searchsorted(bounds, block[block >= 0], side="right")
            assert len(set(sources.tolist())) <= 1


def test_a_mixture_taken_up_at_any_step_goes_on_as_if_never_left(world: Any) -> None:
    request = world.request("crop", *ALL, weights=(1.0, 2.0, 4.0))
    stream = Stream(request, stop=25)
    whole = list(stream)
    for step in range(26):
        start, allowed = resume_step(request.rows, stream.cursor(step))
        assert (start, allowed) == (step, [])
        rest = list(Stream(request, start=start, stop=25))
        assert [batch.step for batch in rest] == list(range(step, 25))
        assert all(same(a, b) for a, b in zip(rest, whole[step:], strict=True))


@pytest.mark.parametrize(("names", "weights"), MIXTURES)
def test_each_source_has_every_row_once_in_each_of_its_epochs(
    world: Any, names: tuple[str, ...], weights: tuple[float, ...]
) -> None:
    request = world.request("eval", *names, weights=weights)
    seen: dict[tuple[int, int], Counter[int]] = {}
    bounds = begins(world, names)
    blocks = np.zeros(len(names), np.int64)
    for batch in Stream(request, stop=60):
        there = batch.rows >= 0
        source = np.searchsorted(bounds, batch.rows, side="right") - 1
        for row, number, epoch in zip(
            batch.rows[there], source[there], batch.row_epochs[there], strict=True
        ):
            seen.setdefault((int(number), int(epoch)), Counter())[int(row - bounds[number])] += 1
        for number in range(len(names)):
            own = (source == number).reshape(-1, world.order.block_rows)
            blocks[number] += own.any(axis=1).sum()
    for number, name in enumerate(names):
        once = Counter(range(len(world.datasets[name].ids)))
        epochs = sorted(epoch for which, epoch in seen if which == number)
        assert epochs == list(range(len(epochs)))
        assert len(epochs) > 1, "no epoch of this source ended: the test shows nothing"
        for epoch in epochs[:-1]:
            assert seen[number, epoch] == once
        assert not seen[number, epochs[-1]] - once
    sizes = [len(world.datasets[name].ids) for name in names]
    wanted = shares_of(weights or sizes) / CYCLE
    assert np.abs(blocks / blocks.sum() - wanted).max() < 0.05


@pytest.mark.parametrize(("names", "weights"), MIXTURES)
def test_labels_follow_the_names_of_classes(
    world: Any, names: tuple[str, ...], weights: tuple[float, ...]
) -> None:
    request = world.request("eval", *names, weights=weights)
    classes = opened(request.rows).classes
    listed = [world.datasets[name].classes for name in names]
    assert classes == tuple(dict.fromkeys(name for one in listed for name in one))
    bounds = begins(world, names)
    own = [[small.classes[i] for i in small.labels] for small in map(world.datasets.get, names)]
    ids = np.concatenate([world.datasets[name].ids for name in names])
    meant = [name for one in own for name in one]
    for batch in Stream(request, stop=15):
        for row, label, inputs in zip(
            batch.rows.tolist(), batch.label.tolist(), batch.inputs.numpy(), strict=True
        ):
            if row >= 0:
                assert classes[label] == meant[row]
                assert (inputs == ids[row][1:7, 1:7]).all()
            else:
                assert (label, int(inputs.sum())) == (0, 0)
    assert bounds[-1] == len(meant)


def test_datasets_of_another_codebook_or_grid_are_refused(world: Any, tmp_path: Any) -> None:
    write_small(tmp_path, "other", [9], classes=["a"], codebook=codebook_bytes(2))
    wide = SPEC | {"grid_width": 9}
    write_small(tmp_path, "wide", [9], classes=["a"], spec=wide)
    for name, why in (("other", "8, 8, 48, 8"), ("wide", "8, 9, 48, 8")):
        source = SourceRequest(str(tmp_path), name, 1, "", "train")
        request = world.request("eval", sources=(world.source("tiny"), source))
        with pytest.raises(InvalidInputError, match=f"'tiny' and '{name}' cannot be mixed.*{why}"):
            Stream(request)


def test_weights_and_sources_are_part_of_a_position(world: Any) -> None:
    saved = Stream(world.request("eval", "tiny", "birds", weights=(1.0, 2.0))).cursor(3)
    same_ratio = world.rows("tiny", "birds", weights=(0.5, 1.0))
    assert resume_step(same_ratio, saved) == (3, [])
    for rows, field in (
        (world.rows("birds", "tiny", weights=(1.0, 2.0)), "sources"),
        (world.rows("tiny", "birds", weights=(2.0, 1.0)), "weights"),
        (world.rows("tiny", "birds"), "weights"),
        (world.rows("tiny"), "sources"),
    ):
        with pytest.raises(CursorMismatchError, match=field):
            resume_step(rows, saved, {DATASET_VERSION})


def test_more_sources_than_a_position_can_name_are_refused_at_once(
    world: Any, tmp_path: Any
) -> None:
    folder = tmp_path / ("a" * 120)
    names = [f"{'long-name-' * 5}{number:02}" for number in range(14)]
    small = [write_small(folder, name, [6], classes=["a"], seed=9) for name in names]
    sources = tuple(SourceRequest(str(folder), s.name, 1, s.digest, "train") for s in small)
    assert len(Stream(world.request("eval", sources=sources[:3])).cursor(10**18)) <= 4096
    with pytest.raises(InvalidInputError, match=r"cursor of 14 sources takes \d+ bytes, at most"):
        Stream(world.request("eval", sources=sources))


def test_a_step_past_the_end_of_a_smaller_version_is_refused(world: Any, tmp_path: Any) -> None:
    first = write_small(tmp_path, "shrinks", [60, 60], classes=["a"])
    second = write_small(tmp_path, "shrinks", [30], classes=["a"], seed=4)
    old, new = (
        world.request(
            "eval", sources=(SourceRequest(str(tmp_path), "shrinks", number, digest, "train"),)
        )
        for number, digest in ((1, first.digest), (2, second.digest))
    )
    saved = Stream(old, stop=10).cursor(9)
    with pytest.raises(CursorMismatchError, match=r"version \(cursor 1, stream 2\)"):
        resume_step(new.rows, saved)
    step, allowed = resume_step(new.rows, saved, {DATASET_VERSION})
    assert step == 9
    assert len(allowed) == 1
    for told in ("version 2", "version 1", first.digest, second.digest, "step 9"):
        assert told in allowed[0]
    with pytest.raises(InvalidInputError, match=r"cannot start at step 9: valid are 0 to .* 4,"):
        Stream(new, start=step, stop=2 * Stream(new).steps_per_epoch)
    rest: list[StreamBatch] = list(Stream(new, start=step, stop=12))
    assert [batch.step for batch in rest] == [9, 10, 11]


def test_a_round_has_as_many_rows_as_all_sources(world: Any) -> None:
    rows = world.rows(*ALL)
    total = begins(world, ALL)[-1]
    stream = Stream(world.request("eval", *ALL))
    assert stream.steps_per_epoch == -(-total // rows.order.global_batch_rows)
    assert opened(replace(rows, weights=(1.0, 1.0, 1.0))).plan.steps_per_epoch == (
        stream.steps_per_epoch
    )


@pytest.mark.parametrize("mixed", [False, True])
def test_classes_that_share_a_name_stay_two(world: Any, tmp_path: Any, mixed: bool) -> None:
    """ImageNet has two cranes, a bird and a machine, and two maillots."""
    lists = [("crane", "owl", "crane", "maillot")] + [("lorry", "crane", "crane", "crane")] * mixed
    small = [
        write_small(tmp_path, f"d{at}", [40], classes=names, seed=at)
        for at, names in enumerate(lists)
    ]
    sources = tuple(SourceRequest(str(tmp_path), one.name, 1, one.digest, "train") for one in small)
    request = world.request("eval", sources=sources)
    # The first of a name in one dataset is the first of that name in the other.
    assert opened(request.rows).classes == lists[0] + ("lorry", "crane") * mixed
    meant = np.concatenate(
        [small[0].labels] + [np.array([4, 0, 2, 5])[s.labels] for s in small[1:]]
    )
    seen: set[int] = set()
    for batch in Stream(request, stop=12):
        there = batch.rows >= 0
        assert (batch.label.numpy()[there] == meant[batch.rows[there]]).all()
        seen |= set(batch.label.numpy()[there].tolist())
    assert seen == set(meant.tolist())
