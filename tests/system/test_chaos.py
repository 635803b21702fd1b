"""What happens to a stream when parts of a cluster die under it: nothing that a trainer sees.

Every batch (rows, ids, labels, mixing) is compared with an undisturbed stream that knows no Ray.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from services.stream.request import StreamRequest
from tests.system.clusters import Cluster
from tests.system.jobs import STEPS, Job, kill_one

pytestmark = [pytest.mark.system, pytest.mark.timeout(420)]

RECOVERY_SECONDS = 60.0
"""Bound on any recovery in here, on machines under load; benchmarks measure how long it takes."""


@pytest.mark.slow  # one actor killed once is in tests/stream/test_pipeline.py
@pytest.mark.parametrize("title", ["MapWorker(MapBatches(AugmentActor))", "ReadFetch"])
def test_processes_killed_three_times_in_a_row_change_no_batch(
    ray_cluster: Cluster,
    token_stream: StreamRequest,
    undisturbed: list[str],
    tmp_path: Path,
    title: str,
) -> None:
    # A run so long that it never runs out of fetch tasks: there is always one to kill.
    job = Job(ray_cluster, token_stream, tmp_path, stop=1_000_000)
    found = job.take(5)
    for _ in range(3):
        kill_one(ray_cluster, title)
        found += job.take(20)
    found += job.take(STEPS - len(found))
    assert found == undisturbed
    flow = job.finish()
    assert (flow.state, flow.steps) == ("stopped", STEPS)


@pytest.mark.parametrize("head_start", [0, pytest.param(16, marks=pytest.mark.slow)])
def test_a_node_that_dies_and_one_that_joins_change_no_batch(
    ray_cluster: Cluster,
    token_stream: StreamRequest,
    undisturbed: list[str],
    tmp_path: Path,
    head_start: int,
) -> None:
    job = Job(ray_cluster, token_stream, tmp_path, head_start=head_start)
    found = job.take(5)
    ray_cluster.kill("127.0.0.3")
    ray_cluster.start("127.0.0.4", 2, "--address", ray_cluster.address)
    began = time.monotonic()
    found += job.take(STEPS - 5)
    assert time.monotonic() - began < RECOVERY_SECONDS + STEPS * 0.5
    assert found == undisturbed
    job.finish()


@pytest.mark.slow
def test_a_node_that_dies_may_leave_no_more_than_the_actors_hold(
    ray_cluster: Cluster, token_stream: StreamRequest, undisturbed: list[str], tmp_path: Path
) -> None:
    """The actors come back on the one CPU that is left; fetch tasks must still find room."""
    job = Job(ray_cluster, token_stream, tmp_path)
    found = job.take(5)
    ray_cluster.kill("127.0.0.3")
    found += job.take(STEPS - 5)
    assert found == undisturbed
    job.finish()


@pytest.mark.slow  # in parts: test_pipeline.py starts anywhere, test_elastic.py kills a trainer
def test_a_driver_that_dies_is_taken_up_at_its_last_step(
    ray_cluster: Cluster, token_stream: StreamRequest, undisturbed: list[str], tmp_path: Path
) -> None:
    job = Job(ray_cluster, token_stream, tmp_path, stop=60)
    found = job.take(17)
    job.process.send_signal(signal.SIGKILL)
    job.process.wait(10)
    job = Job(ray_cluster, token_stream, tmp_path, start=17, stop=60)
    found += job.take(60 - 17)
    assert found == undisturbed[:60]
    job.finish()
