"""The stream through Ray Data: real tasks, a real actor pool, the same batches as without Ray."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.util.state import list_actors

from services.augment.config import CropConfig, RecipeConfig
from services.augment.recipe import RECIPES
from services.errors import CapacityError, IntegrityError, InvalidInputError, NotFoundError
from services.plan.epoch import OrderSpec
from services.stream import forget
from services.stream.cluster import connect
from services.stream.loader import Stream
from services.stream.pipeline import build, reserve
from services.stream.pool import Beside, Pool
from services.stream.request import RowsRequest, SourceRequest, StreamRequest
from services.stream.starting import head_steps
from services.stream.table import head_of
from services.wire.seit import v1 as wire
from tests.stream.conftest import CHANNELS, CODES, write_small
from tests.stream.test_loader import same
from tests.until import until

pytestmark = pytest.mark.system

BIG = {
    "grid_height": 32,
    "grid_width": 32,
    "codes": CODES,
    "channels": CHANNELS,
    "image_height": 256,
    "image_width": 256,
}
ROWS = 64  # of a share


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    # The dashboard answers who runs where; it listens on this machine alone.
    ray.init(
        "local", num_cpus=3, include_dashboard=True, dashboard_host="127.0.0.1", log_to_driver=False
    )
    connect()
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> RowsRequest:
    """Grids of the published size: 32x32."""
    root = tmp_path_factory.mktemp("large")
    small = write_small(root, "large", [90, 150, 70], classes=["a"], spec=BIG)
    return RowsRequest(
        sources=(SourceRequest(str(root), "large", 1, small.digest, "train"),),
        order=OrderSpec(7, ROWS, 8, lanes=2, window_shards=2),
        cache_dir=str(tmp_path_factory.mktemp("cache")),
        cache_bytes=10**9,
    )


def cropped(large: RowsRequest, name: str) -> StreamRequest:
    """A recipe to 28x28, without TokenAdapt."""
    if name == "crop":
        recipe = RecipeConfig("crop", (28, 28), plain_crop=CropConfig(kind="random"))
    else:
        recipe = RECIPES[name](wire.TokenSpec(**BIG), (28, 28))
    return StreamRequest(large, replace(recipe, adapt=replace(recipe.adapt, share=0.0)))


def blocks(dataset: Any) -> list[pa.Table]:
    return [
        ray.get(ref) for bundle in dataset.iter_internal_ref_bundles() for ref in bundle.block_refs
    ]


@pytest.mark.parametrize("recipe", ["crop", "eval", "mtm", "finetune", "scratch"])
def test_a_block_is_a_share_and_never_cut_inside_one(large: RowsRequest, recipe: str) -> None:
    request = cropped(large, recipe)
    tables = blocks(build(request, 0, 1, range(1, 12), 4, Pool()))
    steps = []
    for table in tables:
        assert table.num_rows % ROWS == 0
        starts = range(0, table.num_rows, ROWS)
        steps += [head_of(table.slice(start, ROWS)).step for start in starts]
        if request.recipe.output == "ids":
            assert table.num_rows == ROWS
    assert steps == list(range(1, 12))


@pytest.mark.parametrize("recipe", ["mtm", "scratch"])
def test_ray_gives_the_batches_that_threads_give(world: Any, recipe: str) -> None:
    request = world.request(recipe)
    here = list(Stream(request, start=2, stop=17, rank=1, world=2))
    there = list(Stream(request, start=2, stop=17, rank=1, world=2, pool=Pool(actors=2)))
    assert [b.step for b in there] == [b.step for b in here] == list(range(2, 17))
    assert all(same(a, b) for a, b in zip(here, there, strict=True))


@pytest.mark.slow
def test_two_kinds_of_actors_at_once_give_the_batches_of_one(world: Any) -> None:
    request = world.request("mtm")
    pool = Pool(actors=1, cpus=0.5, beside=Beside(actors=2, cpus=0.25, share=0.4))
    here = list(Stream(request, start=2, stop=40))
    made = iter(Stream(request, start=2, stop=2000, pool=pool))
    there = [next(made) for _ in here]
    assert [b.step for b in there] == list(range(2, 40))
    assert all(same(a, b) for a, b in zip(here, there, strict=True))
    address = ray.get_runtime_context().gcs_address
    assert len(_actors(address)) == 3
    made.close()  # type: ignore[attr-defined]
    until(lambda: not _actors(address))


def test_a_run_in_which_those_beside_have_next_to_nothing_to_do_ends(world: Any) -> None:
    request = world.request("mtm")
    pool = Pool(actors=1, cpus=0.5, beside=Beside(actors=1, cpus=0.5, share=0.1))
    here = list(Stream(request, stop=10))  # of which the last is theirs
    there = list(Stream(request, stop=10, pool=pool))
    assert all(same(a, b) for a, b in zip(here, there, strict=True))


def test_actors_beside_others_are_counted_before_anything_starts(world: Any) -> None:
    pool = Pool(actors=1, cpus=1.0, beside=Beside(actors=4, cpus=1.0))
    with pytest.raises(CapacityError, match=r"5 augmentation actors .* need 5 CPUs"):
        next(iter(Stream(world.request("mtm"), stop=9, pool=pool)))


@given(share=st.floats(0.001, 0.999), start=st.integers(0, 10**6))
def test_the_share_of_those_beside_holds_over_any_stretch(share: float, start: int) -> None:
    beside = Beside(actors=1, share=share)
    for steps in (1, 10, 1000):
        made = sum(beside.makes(step) for step in range(start, start + steps))
        assert abs(made - share * steps) <= 1 + 1e-6


@pytest.mark.parametrize("wrong", [{"actors": 0}, {"cpus": 0.0}, {"share": 0.0}, {"share": 1.0}])
def test_actors_beside_others_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="beside"):
        Beside(**{"actors": 1, **wrong})


def _actors(address: str) -> list[Any]:
    """Augmentation actors that live now."""
    found = list_actors(address, filters=[("state", "=", "ALIVE")], detail=True)
    return [actor for actor in found if "MapWorker" in actor.class_name]


def test_a_consumer_that_augments_itself_gets_the_batches_of_actors(world: Any) -> None:
    request = world.request("finetune")
    here = list(Stream(request, start=2, stop=9))
    for head_start in (0, 3):
        pool = Pool(head_start=head_start)
        own = list(Stream(request, start=2, stop=9, pool=pool, augment_on="cpu"))
        assert all(same(a, b) for a, b in zip(here, own, strict=True))


@pytest.mark.parametrize(
    ("recipe", "head_start"),
    [*(("crop", head_start) for head_start in (0, 1, 5, 27, 28)), ("finetune", 5)],
)
def test_a_head_start_changes_no_batch_and_reads_no_shard_twice(
    world: Any, tmp_path: Path, recipe: str, head_start: int
) -> None:
    request = world.request(recipe, cache_dir=str(tmp_path))
    stream = Stream(request, start=2, stop=29, rank=1, world=2, pool=Pool(head_start=head_start))
    there = list(stream)
    here = list(Stream(world.request(recipe), start=2, stop=29, rank=1, world=2))
    assert [b.step for b in there] == list(range(2, 29))
    assert all(same(a, b) for a, b in zip(here, there, strict=True))
    size = sum(shard.bytes for shard in world.datasets["tiny"].shards)
    flow = stream.flow()
    assert flow.bytes_fetched == size
    # Ray's start is no stall, and does not slow the stream down in its own account.
    whole = (flow.rows - int((there[0].rows >= 0).sum())) / (
        flow.seconds - flow.first_batch_seconds
    )
    assert (flow.rows_per_second > 1.01 * whole) == (0 < head_start < len(there))
    # Whoever made room in the cache now would have to break no hold of this process.
    assert not _held(tmp_path)


def _held(folder: Path) -> list[str]:
    """Files under a folder that this process maps."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return [line.split()[-1] for line in maps if str(folder) in line]


@pytest.mark.parametrize(("gpus", "most"), [(0.0, 16), (0.5, 0)])
def test_a_head_start_before_actors_is_what_one_process_can_do_meanwhile(
    world: Any, gpus: float, most: int
) -> None:
    for recipe, tokenadapt, rows in (("finetune", "", 16_384), ("finetune", "t", 1024)):
        request = replace(world.request(recipe), tokenadapt=tokenadapt)
        for batch in (28, 2800, 280_000):
            order = replace(request.rows.order, global_batch_rows=batch, block_rows=batch // 4)
            larger = replace(request, rows=replace(request.rows, order=order))
            steps = head_steps(larger, 0, 2, Pool(head_start=16, gpus=gpus))
            assert steps <= most
            assert not most or steps == 1 or steps * batch / 2 <= rows
            assert steps in (0, 16) or (steps + 1) * batch / 2 > rows


def test_a_stream_that_is_left_in_its_head_start_ends(world: Any) -> None:
    made = iter(Stream(world.request("crop"), stop=500, pool=Pool(head_start=8)))
    assert next(made).step == 0
    made.close()  # type: ignore[attr-defined]
    assert next(made, None) is None


def test_what_goes_wrong_in_a_head_start_is_said(world: Any, tmp_path: Path) -> None:
    small = write_small(tmp_path / "root", "gone", [20, 30], classes=["a"])
    source = SourceRequest(str(tmp_path / "root"), "gone", 1, small.digest, "train")
    request = world.request("crop", sources=(source,), cache_dir=str(tmp_path / "new"))
    (tmp_path / "root" / "gone" / small.shards[0].path).unlink()
    with pytest.raises(NotFoundError, match=small.shards[0].path):
        list(Stream(request, stop=8, pool=Pool(head_start=4)))


def test_a_mixture_through_ray_is_that_of_threads(world: Any) -> None:
    for recipe in ("crop", "finetune"):
        request = world.request(recipe, "tiny", "birds", "cars", weights=(1.0, 2.0, 4.0))
        here = list(Stream(request, start=3, stop=30))
        stream = Stream(request, start=3, stop=30, pool=Pool(head_start=0))
        there = list(stream)
        assert all(same(a, b) for a, b in zip(here, there, strict=True))
        assert all((a.row_epochs == b.row_epochs).all() for a, b in zip(here, there, strict=True))
        flow = stream.flow()
        assert (flow.state, flow.step, flow.steps) == ("finished", 30, 27)


def pool_actors() -> list[Any]:
    """The augmentation actors that live now; a pool of an ended stream is gone within moments."""
    # By address: other clusters may run on this machine.
    found = list_actors(ray.get_runtime_context().gcs_address, detail=True)
    return [one for one in found if one.state == "ALIVE" and "MapWorker" in one.class_name]


def test_a_recipe_that_only_cuts_needs_no_actors(world: Any) -> None:
    request = world.request("crop")
    here = list(Stream(request, stop=30))
    # A pool that could never be placed: nothing is asked of it.
    pool = Pool(actors=50, cpus=1.0, head_start=4)
    stream = Stream(request, stop=30, pool=pool, trainer_cpus=1.0)
    there, earlier = [], {actor.pid for actor in pool_actors()}
    for batch in stream:
        if batch.step in (1, 20):
            assert {actor.pid for actor in pool_actors()} <= earlier
        there.append(batch)
    assert all(same(a, b) for a, b in zip(here, there, strict=True))
    assert all(batch.account.augment_seconds == 0 for batch in there)


def test_an_actor_that_dies_comes_back_and_is_counted(world: Any) -> None:
    request = world.request("finetune")
    here = list(Stream(request, stop=120))
    stream = Stream(request, stop=120, pool=Pool(actors=1, head_start=0), prefetch=1)
    there, killed = [], set[int]()
    for batch in stream:
        there.append(batch)
        if batch.step == 5:
            killed = {actor.pid for actor in pool_actors()}
            assert killed
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
    assert [batch.step for batch in there] == list(range(120))
    assert all(same(a, b) for a, b in zip(here, there, strict=True))
    assert any(batch.account.restarted for batch in there)
    assert stream.flow().actor_restarts == len(killed)


def test_costs_of_tasks_reach_the_meter(world: Any, tmp_path: Path) -> None:
    request = world.request("finetune", cache_dir=str(tmp_path))
    stream = Stream(request, stop=14, pool=Pool(fetchers=1))
    batches = list(stream)
    flow = stream.flow()
    size = sum(shard.bytes for shard in world.datasets["tiny"].shards)
    assert flow.bytes_fetched == size  # by one process or several, each shard once
    assert all(b.account.storage_seconds > 0 and b.account.augment_seconds > 0 for b in batches)


def test_a_damaged_shard_ends_a_stream_or_is_left_out(world: Any, tmp_path: Path) -> None:
    small = write_small(tmp_path / "root", "hurt", [20, 30, 40], classes=["a"])
    source = SourceRequest(str(tmp_path / "root"), "hurt", 1, small.digest, "train")
    request = world.request("crop", sources=(source,))
    whole = list(Stream(request, stop=8))
    file = tmp_path / "root" / "hurt" / small.shards[1].path
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    rows = replace(request.rows, cache_dir=str(tmp_path / "new"))
    with pytest.raises(Exception, match="damaged") as ended:
        list(Stream(replace(request, rows=rows), stop=8, pool=Pool(head_start=0)))
    causes, error = [], ended.value
    while error is not None:
        causes.append(error)
        error = getattr(error, "cause", None) or error.__cause__
    assert any(isinstance(cause, IntegrityError) for cause in causes)
    careful = replace(request, rows=replace(rows, skip_damaged=True))
    stream = Stream(careful, stop=8, pool=Pool(head_start=3))
    for before, after in zip(whole, stream, strict=True):
        gone = (before.rows >= 20) & (before.rows < 50)
        assert (after.rows == np.where(gone, -1, before.rows)).all()
    assert stream.flow().quarantined == [f"hurt/{small.shards[1].path}"]


def test_a_pool_that_cannot_be_placed_is_refused_at_once(world: Any) -> None:
    stream = Stream(world.request(), pool=Pool(actors=5, cpus=0.5), trainer_cpus=1.0)
    began = time.monotonic()
    with pytest.raises(
        CapacityError, match=r"need 2\.5 CPUs and 0 GPUs; the cluster has at most 3"
    ):
        next(iter(stream))
    assert time.monotonic() - began < 60


def test_what_an_autoscaler_may_bring_counts_as_room(world: Any) -> None:
    def place(grows_to: float) -> None:
        pool = Pool(actors=5, cpus=0.5, grows_to_cpus=grows_to)
        reserve([], pool, world=1, trainer_cpus=1.0, augments=True)

    place(3.5)
    with pytest.raises(CapacityError, match=r"at most 3\.4 and 0"):
        place(3.4)


class Kept(ExecutionCallback):
    """The most blocks that operators of an execution remembered, and tasks in their queues."""

    most: ClassVar[dict[str, int]] = {}

    def on_execution_step(self, executor: Any) -> None:
        for operator in executor._topology:
            for name, held in (
                ("statistics", getattr(operator, "_output_blocks_stats", ())),
                ("order", getattr(getattr(operator, "_output_queue", None), "_inner", ())),
            ):
                self.most[name] = max(self.most.get(name, 0), len(held))


@pytest.mark.parametrize("forgets", [True, False])
def test_a_long_run_remembers_no_more_than_a_short_one(
    world: Any, monkeypatch: pytest.MonkeyPatch, forgets: bool
) -> None:
    """Ray Data keeps what is measured here until the end; without our callback it still does so,
    or the callback could go."""
    monkeypatch.setattr(forget, "EVERY", 16)
    monkeypatch.setattr(Kept, "most", {})
    request = world.request("mtm")
    recipe = replace(request.recipe, adapt=replace(request.recipe.adapt, share=0.0))
    dataset = build(replace(request, recipe=recipe), 0, 2, range(600), 128, Pool(cpus=0.5))
    callbacks = dataset.context.custom_execution_callback_classes
    assert callbacks == [forget.Forget]
    dataset.context.custom_execution_callback_classes = [*callbacks, Kept] if forgets else [Kept]
    reserve([dataset], Pool(cpus=0.5), 2, 1.0, augments=True)
    assert sum(1 for _ in dataset.iter_batches(batch_size=None, batch_format="pyarrow")) >= 600
    if forgets:
        assert set(Kept.most) == {"statistics", "order"}
        assert max(Kept.most.values()) < 300
    else:
        assert min(Kept.most.values()) >= 600
