"""Streams that are left while those who work for them find no room: leaving waits for nobody."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray

from services.stream.loader import Stream
from services.stream.pool import Beside, Pool, Sharing
from services.stream.shared import AHEAD, NAMESPACE, service_name
from tests.until import until

pytestmark = [pytest.mark.system, pytest.mark.timeout(120), pytest.mark.usefixtures("local_ray")]

NOWHERE = {"cpus": 9.0, "grows_to_cpus": 20.0}
"""Of actors that wait for a node, which never comes: the cluster has three CPUs."""


def executors() -> list[str]:
    return [each.name for each in threading.enumerate() if "StreamingExecutor" in each.name]


@pytest.mark.parametrize(
    "pool",
    [
        Pool(**NOWHERE),
        Pool(beside=Beside(1, cpus=9.0), grows_to_cpus=20.0),
        Pool(beside=Beside(1, cpus=9.0), grows_to_cpus=20.0, head_start=0),
    ],
    ids=["in its head start", "in one before two kinds of actors", "while one kind works"],
)
def test_a_stream_whose_actors_find_no_room_can_be_left(world: Any, pool: Pool) -> None:
    stream = Stream(world.request("finetune"), stop=500, pool=pool)
    batches = iter(stream)
    assert next(batches).step == 0
    batches.close()  # type: ignore[attr-defined]
    assert stream.flow().state == "stopped"
    until(lambda: not executors())


def test_a_shared_stream_that_is_left_before_its_service_stands_counts_for_nothing(
    world: Any,
) -> None:
    request, pool = world.request("finetune"), Pool(head_start=4)
    batches = iter(Stream(request, stop=500, pool=pool, sharing=Sharing(4, 300.0)))
    assert next(batches).step == 0
    batches.close()  # type: ignore[attr-defined]
    service = ray.get_actor(service_name(request, 0, 1, 500, pool), NAMESPACE)
    # A service with a consumer that lives would refuse a step as far as this one.
    until(lambda: ray.get(service.join.remote("someone", 400)).state == "over")
    ray.kill(service)


def test_an_interrupt_ends_the_wait_for_a_shared_batch_that_nobody_makes(world: Any) -> None:
    request, pool = world.request("finetune"), Pool(head_start=0, **NOWHERE)
    batches = iter(Stream(request, stop=500, pool=pool, sharing=Sharing(4, 30.0)))
    name = service_name(request, 0, 1, 500, pool)

    def asked() -> bool:
        try:
            service = ray.get_actor(name, NAMESPACE)
        except ValueError:  # not started yet
            return False
        newest: int = ray.get(service.ask.remote("someone", 0, 0.0)).kept.newest
        return newest == AHEAD - 1

    def interrupt() -> None:
        until(asked)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)

    with ThreadPoolExecutor(1) as other:
        other.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(batches)
    ray.kill(ray.get_actor(name, NAMESPACE))
