"""One augmented stream for jobs on several nodes: made once, the same batches for each of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.stream.request import StreamRequest
from tests.system.clusters import Cluster
from tests.system.jobs import STEPS, Job
from tests.until import until

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(420)]

LAG = 32
SERVICE, ACTOR = "StreamService", "MapWorker(MapBatches(AugmentActor))"


def test_jobs_on_two_nodes_share_one_stream_and_outlive_the_node_that_made_it(
    ray_cluster: Cluster, token_stream: StreamRequest, undisturbed: list[str], tmp_path: Path
) -> None:
    # The one that comes first has the service, and the fetch tasks, on its node.
    one = Job(ray_cluster, token_stream, tmp_path / "one", ip="127.0.0.3", share_lag=LAG)
    first = one.take(10)
    until(lambda: ray_cluster.workers(SERVICE), SERVICE)
    other = Job(ray_cluster, token_stream, tmp_path / "other", share_lag=LAG)
    second = other.take(20)
    for _ in range(4):
        first += one.take(10)
        second += other.take(5)
    assert first == undisturbed[: len(first)]
    assert second == undisturbed[: len(second)]
    assert len(ray_cluster.workers(SERVICE)) == 1
    assert len(ray_cluster.workers(ACTOR)) == 2  # of the service: nobody else has any
    ray_cluster.kill("127.0.0.3")
    second += other.take(STEPS - len(second))
    assert second == undisturbed
    flow = other.finish()
    assert (flow.state, flow.steps) == ("finished", STEPS)
    assert flow.shared.startswith("alone from step ")
    one.process.kill()
    one.process.wait(10)
