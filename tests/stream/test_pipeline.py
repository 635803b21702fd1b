"""The stream through Ray Data: real tasks, a real actor pool, the same batches as without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray

from services.errors import CapacityError
from services.stream.cluster import connect
from services.stream.loader import Stream
from services.stream.pool import Pool
from tests.stream.test_loader import same

pytestmark = pytest.mark.system


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    connect()
    yield
    ray.shutdown()


@pytest.mark.parametrize("recipe", ["mtm", "scratch"])
def test_ray_gives_the_batches_that_threads_give(world: Any, recipe: str) -> None:
    request = world.request(recipe)
    here = list(Stream(request, start=2, stop=17, rank=1, world=2))
    there = list(Stream(request, start=2, stop=17, rank=1, world=2, pool=Pool(actors=2)))
    assert [b.step for b in there] == [b.step for b in here] == list(range(2, 17))
    assert all(same(a, b) for a, b in zip(here, there, strict=True))


def test_a_pool_that_cannot_be_placed_is_refused_at_once(world: Any) -> None:
    stream = Stream(world.request(), pool=Pool(actors=4, cpus=0.5), trainer_cpus=1.0)
    with pytest.raises(CapacityError, match=r"need 2\.25 CPUs and 0 GPUs; the cluster has 3"):
        next(iter(stream))
