"""An autoscaler brings nodes when augmentation wants more actors than there is room for.

Ray's own autoscaler, and its provider whose nodes are processes of this machine.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.stream.request import StreamRequest
from tests.system.clusters import Cluster, cluster
from tests.system.jobs import Job

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(420)]

HEAD = "f" * 51 + "00000"  # the id that the provider gives the head


@pytest.fixture
def autoscaled(tmp_path: Path) -> Iterator[Cluster]:
    """A head without CPUs, a node with one, and up to two nodes of two that are not there yet."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    config = tmp_path / "autoscaling.json"
    size = {"object_store_memory": 200_000_000}
    types = {
        "ray.head.default": {"resources": {"CPU": 0}, "min_workers": 0, "max_workers": 0},
        "train": {"resources": {"CPU": 1, **size}, "min_workers": 1, "max_workers": 1},
        "augment": {"resources": {"CPU": 2, **size}, "min_workers": 0, "max_workers": 2},
    }
    config.write_text(
        json.dumps(
            {
                "cluster_name": "test",
                "max_workers": 3,
                "provider": {
                    "type": "fake_multinode",
                    "head_node_id": HEAD,
                    "launch_multiple": True,
                },
                "auth": {},
                "available_node_types": {
                    name: {"node_config": {}, **about} for name, about in types.items()
                },
                "head_node_type": "ray.head.default",
                "idle_timeout_minutes": 5,
            }
        )
    )
    options = ("--include-dashboard", "false", "--autoscaling-config", str(config))
    variables = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    with cluster(tmp_path, environment, 0, "auto", *options, **variables) as made:
        yield made


def test_nodes_come_for_augmentation_actors(
    autoscaled: Cluster, token_stream: StreamRequest, tmp_path: Path
) -> None:
    job = Job(autoscaled, token_stream, tmp_path, actors="1-4", cpus=1.0, stop=20000)
    end = time.monotonic() + 240
    most = 0
    while most < 3 and time.monotonic() < end:
        job.take(10)
        most = max(most, len(autoscaled.workers("MapWorker(MapBatches(AugmentActor))")))
    job.process.kill()
    assert most >= 3
