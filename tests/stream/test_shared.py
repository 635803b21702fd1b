"""One stream for several consumers on a real cluster: the same batches, made once, for each."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.util.state import list_actors

from services.errors import CapacityError, InvalidInputError, NotFoundError
from services.stream.batch import StreamBatch
from services.stream.cluster import connect
from services.stream.loader import Stream
from services.stream.pool import Pool, Sharing
from services.stream.request import SourceRequest, StreamRequest
from services.stream.shared import AHEAD, NAMESPACE, service_name
from tests.stream.conftest import write_small
from tests.stream.test_loader import same
from tests.system.stream_job import digest, write_request
from tests.until import until

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
IDLE = 30.0
"""Longer than any pause in a test; a consumer that died is found out after a quarter of it."""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    torch.set_num_threads(1)  # as an actor with less than a core does
    ray.init(
        "local", num_cpus=3, include_dashboard=True, dashboard_host="127.0.0.1", log_to_driver=False
    )
    connect()
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def alone_on_the_cluster() -> Iterator[None]:
    """A test's services end with it, and their actors."""
    yield
    kill(alive("StreamService"))
    until(lambda: not alive("StreamService") and not alive("MapWorker"))


def alive(kind: str) -> list[Any]:
    """Actors of a class that live now."""
    address = ray.get_runtime_context().gcs_address
    found = list_actors(address, filters=[("state", "=", "ALIVE")], detail=True)
    return [one for one in found if kind in one.class_name]


def kill(actors: list[Any]) -> None:
    for actor in actors:
        with suppress(ProcessLookupError):  # it ended meanwhile
            os.kill(actor.pid, signal.SIGKILL)


def shared(request: StreamRequest, stop: int, lag: int, **changes: Any) -> Stream:
    """Of which the service makes all, if `changes` say nothing else."""
    changes = {"pool": Pool(head_start=0), "sharing": Sharing(lag, IDLE), **changes}
    return Stream(request, stop=stop, **changes)


def take(batches: Iterator[StreamBatch], count: int) -> list[StreamBatch]:
    return [next(batches) for _ in range(count)]


def equal(found: list[StreamBatch], expected: list[StreamBatch]) -> bool:
    steps = [batch.step for batch in found] == [batch.step for batch in expected]
    return steps and all(same(a, b) for a, b in zip(found, expected, strict=True))


class Job:
    """`shared_job.py`: a driver of its own, with a namespace and a job id of its own."""

    def __init__(self, request: StreamRequest, folder: Path, lag: int, start: int, stop: int):
        file = folder / f"{uuid.uuid4().hex}.json"
        write_request(request, file)
        address = ray.get_runtime_context().gcs_address
        arguments = [address, lag, IDLE, start, stop]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.stream.shared_job", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "REQUEST": str(file), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def take(self, count: int) -> list[tuple[int, str]]:
        """(step, digest) of the next batches."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        lines = [self._process.stdout.readline().split() for _ in range(count)]
        return [(int(step), said) for step, said in lines]

    def end(self) -> str:
        """How its stream was shared, as it said at its end."""
        out, _ = self._process.communicate(timeout=120)
        return str(out).strip().splitlines()[-1].removeprefix("end ")

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def test_two_jobs_get_every_batch_and_it_is_made_once(world: Any, tmp_path: Path) -> None:
    request = world.request("mtm")
    told = [(batch.step, digest(batch)) for batch in Stream(request, stop=40)]
    workers = set()
    with (
        Job(request, tmp_path, 16, 0, 40) as one,
        Job(request, tmp_path, 16, 0, 40) as other,
    ):
        first, second = [], []
        for _ in range(5):
            first += one.take(8)
            second += other.take(8)
            workers |= {actor.pid for actor in alive("MapWorker")}
        assert first == second == told
        assert len(workers) == 1
        assert len(alive("StreamService")) == 1
        assert (one.end(), other.end()) == ("shared", "shared")


@pytest.mark.slow
def test_the_stream_outlives_the_job_that_began_it(world: Any, tmp_path: Path) -> None:
    request = world.request("finetune")
    told = [(batch.step, digest(batch)) for batch in Stream(request, stop=200)]
    with Job(request, tmp_path, 32, 0, 200) as founder, Job(request, tmp_path, 32, 0, 200) as other:
        assert founder.take(20) == told[:20]  # the first ones it makes itself
        assert other.take(20) == told[:20]
        workers = {actor.pid for actor in alive("MapWorker")}
        assert founder.end() == "shared"
        assert other.take(180) == told[20:]
        assert {actor.pid for actor in alive("MapWorker")} <= workers
        assert other.end() == "shared"


def test_a_slow_consumer_is_told_and_goes_on_alone(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    request, lag = world.request("crop"), 6
    here = list(Stream(request, stop=40))
    fast, slow = shared(request, 40, lag), shared(request, 40, lag)
    ahead, behind = iter(fast), iter(slow)
    found, late = take(ahead, 1), take(behind, 1)
    found += take(ahead, lag)  # the lag is allowed
    late += take(behind, 1)
    assert (fast.flow().shared, slow.flow().shared) == ("shared", "shared")
    found += take(ahead, 33 - len(found))  # held up by nobody: the other one takes nothing
    with caplog.at_level(logging.WARNING, "services.stream"):
        late += list(behind)
    assert equal(late, here)
    # What it had asked for already it still got.
    apart = int(slow.flow().shared.split()[3].rstrip(":"))
    assert 2 < apart <= 2 + AHEAD
    said = f"at step {apart}: this trainer fell off: the shared stream keeps steps "
    assert said in caplog.text
    assert "(lag 6)" in caplog.text
    assert "goes on with a pipeline of its own from this step" in caplog.text
    found += list(ahead)
    assert equal(found, here)
    assert (fast.flow().shared, fast.flow().state) == ("shared", "finished")


def test_who_shares_makes_its_first_batches_itself_while_the_service_starts(world: Any) -> None:
    request = world.request("finetune")
    here = list(Stream(request, stop=17))
    # Its actors never come: they wait for a node that the cluster does not get.
    pool = Pool(cpus=9.0, grows_to_cpus=20.0, head_start=16)
    streams = [shared(request, 500, 8, pool=pool, start=start) for start in (0, 1)]
    one, other = (iter(stream) for stream in streams)
    first, second = take(one, 8), take(other, 8)
    first += take(one, 8)
    until(lambda: bool(alive("StreamService")))
    second += take(other, 7)  # of the service's first one, not of its own start
    assert equal(first, here[:16])
    assert equal(second, here[1:16])
    until(lambda: [stream.flow().shared for stream in streams] == ["shared", "shared"])
    (service,) = [ray.get_actor(service_name(request, 0, 1, 500, pool), NAMESPACE)]
    kept = ray.get(service.join.remote("someone", 5)).kept
    assert (kept.oldest, kept.start) == (0, 16)
    for batches in (one, other):
        batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("waits", [False, True], ids=["as it comes", "after the service's"])
def test_own_batches_end_where_those_of_the_service_begin(world: Any, waits: bool) -> None:
    request, pool = world.request("finetune"), Pool(head_start=3)
    here = list(Stream(request, stop=12))
    first = shared(request, 12, 8, pool=pool)
    batches = iter(first)
    found = take(batches, 1)
    if waits:
        until(lambda: first.flow().shared == "shared")
    joiner = shared(request, 12, 8, pool=pool, start=2)
    assert equal(list(iter(joiner)), here[2:])
    assert joiner.flow().shared == "shared"
    assert equal(found + list(batches), here)
    assert first.flow().shared == "shared"


@pytest.mark.slow
def test_who_joins_near_shares_and_who_joins_far_away_does_not(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    request, lag = world.request("eval"), 8
    here = list(Stream(request, stop=60))
    first = shared(request, 60, lag)
    batches = iter(first)
    found = take(batches, 20)
    for start, joins in ((0, False), (5, False), (16, True), (24, True), (50, False)):
        caplog.clear()
        joiner = shared(request, 60, lag, start=start)
        assert equal(take(iter(joiner), 3), here[start : start + 3])
        if joins:
            assert joiner.flow().shared == "shared"
            assert not caplog.text
        else:
            assert joiner.flow().shared.startswith(f"alone from step {start}: the shared stream")
            assert "a trainer may join at those, or at most 8 later" in caplog.text
    assert equal(found + list(batches), here)
    assert len(alive("StreamService")) == 1


def test_who_asks_for_something_else_gets_a_stream_of_its_own(world: Any) -> None:
    request, pool = world.request("mtm"), Pool()
    name = service_name(request, 0, 2, 9, pool)
    elsewhere = replace(request, rows=replace(request.rows, cache_dir="/other", cache_bytes=7))
    assert service_name(elsewhere, 0, 2, 9, pool) == name
    seed = replace(request.rows, order=replace(request.rows.order, seed=6))
    others = [
        service_name(replace(request, rows=seed), 0, 2, 9, pool),
        service_name(world.request("finetune"), 0, 2, 9, pool),
        service_name(world.request("mtm", "birds"), 0, 2, 9, pool),
        service_name(request, 1, 2, 9, pool),
        service_name(request, 0, 1, 9, pool),
        service_name(request, 0, 2, 8, pool),
        service_name(request, 0, 2, 9, Pool(gpus=1)),
    ]
    assert len({name, *others}) == 8


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["mtm", "scratch"])
def test_a_killed_service_leaves_both_with_the_same_batches(world: Any, recipe: str) -> None:
    request = world.request(recipe)
    here = list(Stream(request, stop=40))
    streams = [shared(request, 40, 30) for _ in range(2)]
    batches = [iter(stream) for stream in streams]
    found = [take(one, 5 + 3 * number) for number, one in enumerate(batches)]
    kill(alive("StreamService"))
    for number, one in enumerate(batches):
        found[number] += list(one)
        assert equal(found[number], here)
        flow = streams[number].flow()
        assert "the shared stream is gone" in flow.shared
        assert flow.shared.startswith("alone from step ")
        assert flow.state == "finished"


def test_actors_that_find_no_room_are_refused_before_a_service_starts(world: Any) -> None:
    request, pool = world.request(), Pool(actors=5)
    with pytest.raises(
        CapacityError, match=r"need 2\.5 CPUs and 0 GPUs; the cluster has at most 3"
    ):
        take(iter(shared(request, 9, 5, pool=pool, trainer_cpus=1.0)), 1)
    with pytest.raises(ValueError, match="Failed to look up actor"):
        ray.get_actor(service_name(request, 0, 1, 9, pool), NAMESPACE)


def test_a_pipeline_that_fails_is_told_by_its_own_error(world: Any, tmp_path: Path) -> None:
    small = write_small(tmp_path / "root", "gone", [20, 30], classes=["a"])
    source = SourceRequest(str(tmp_path / "root"), "gone", 1, small.digest, "train")
    request = world.request("crop", sources=(source,), cache_dir=str(tmp_path / "new"))
    (tmp_path / "root" / "gone" / small.shards[0].path).unlink()
    stream = shared(request, 8, 4)
    with pytest.raises(NotFoundError, match=small.shards[0].path):
        list(stream)
    said = stream.flow().shared
    assert "the shared stream is gone (its pipeline failed: " in said
    assert small.shards[0].path in said


@pytest.mark.slow
def test_a_service_ends_when_nobody_uses_it_and_lives_while_someone_does(world: Any) -> None:
    request, idle = world.request("crop"), 4.0
    stream = shared(request, 30, 4, sharing=Sharing(4, idle))
    batches = iter(stream)
    take(batches, 2)
    (service,) = alive("StreamService")
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 2 * idle)  # validating, say: it asks for nothing
    assert [actor.pid for actor in alive("StreamService")] == [service.pid]
    assert len(list(batches)) == 28
    assert stream.flow().shared == "shared"
    until(lambda: not alive("StreamService"))


@pytest.mark.slow
def test_a_job_that_resumes_gets_a_new_service_where_nobody_else_uses_the_old(world: Any) -> None:
    request = world.request("mtm")
    here = list(Stream(request, stop=40))
    first = iter(shared(request, 40, 4))
    take(first, 20)
    (service,) = alive("StreamService")
    first.close()  # type: ignore[attr-defined]
    again = shared(request, 40, 4, start=3)
    assert equal(list(again), here[3:])
    assert again.flow().shared == "shared"
    until(lambda: service.pid not in {actor.pid for actor in alive("StreamService")})


def test_what_cannot_be_shared_is_refused(world: Any) -> None:
    with pytest.raises(InvalidInputError, match="cannot be shared"):
        Stream(world.request(), sharing=Sharing(4))
    with pytest.raises(InvalidInputError, match="lag of at least 1 step"):
        Sharing(0)
