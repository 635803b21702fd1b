"""Nodes that Ray's autoscaler orders for augmentation actors, and lets go after the run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from services.augment.tokenadapt import TokenAdapt, TokenAdaptConfig
from services.stream.request import StreamRequest
from tests.system.clusters import Cluster, cluster, free_port
from tests.system.conftest import ROOT
from tests.system.jobs import started
from tests.until import until

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(900)]


ORDERED = "127.0.0.3", "127.0.0.4", "127.0.0.5"
"""Addresses that the provider gives, in its order."""

_COMMANDS = (
    "cluster_synced_files",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
"""What a cloud's machines would be prepared by, and Ray wants to be named."""


def configuration(gcs: str, scratch: str) -> dict[str, object]:
    """A head without CPUs, a node of one, and up to two more, which go after 20 s without work."""
    return {
        "cluster_name": "loopback",
        "max_workers": 3,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 0.33,
        "provider": {
            "type": "external",
            "module": "tests.system.loopback_provider.LoopbackProvider",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "foreground_node_launch": True,
            "gcs": gcs,
            "scratch": scratch,
        },
        "auth": {},
        "file_mounts": {},
        **{key: [] for key in _COMMANDS},
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "augment": {
                "resources": {"CPU": 1},
                "node_config": {},
                "min_workers": 1,
                "max_workers": 3,
            },
        },
    }


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Cluster]:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "AUTOSCALER_UPDATE_INTERVAL_S": "2",
    }
    port = free_port()
    file = tmp_path / "autoscaling.yaml"
    name = "autoscale"
    file.write_text(
        yaml.safe_dump(configuration(f"127.0.0.2:{port}", f"/tmp/seit-{name}-{os.getpid()}"))
    )
    options = "--include-dashboard", "false", "--autoscaling-config", str(file)
    with cluster(tmp_path, environment, 0, name, *options, port=port) as made:
        yield made


def test_nodes_come_for_augmentation_actors_and_go(
    head: Cluster, token_stream: StreamRequest, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    sizes = {"dim": 128, "heads": 4, "mlp": 256, "dim_head": 32}
    config = TokenAdaptConfig(grid=(16, 16), out_grid=(12, 12), channels=8, codes=64, **sizes)
    torch.manual_seed(1)
    (tmp_path / "tokenadapt.safetensors").write_bytes(TokenAdapt(config).to_bytes())
    data = token_stream.rows.sources[0]
    command = [
        *(sys.executable, str(ROOT / "trainers" / "mtm.py"), "--recipe", "mtm-tiny"),
        *("--data.root", data.root, "--data.dataset", data.dataset, "--out", str(out)),
        *("--loop.epochs", "1", "--optim.warmup-epochs", "0", "--augment.crop", "12"),
        *("--augment.tokenadapt", str(tmp_path / "tokenadapt.safetensors")),
        *("--order.global-batch", "96", "--order.block", "8", "--order.lanes", "2"),
        *("--cluster.augment-actors", "4", "--cluster.augment-cpus-per-actor", "0.5"),
        *("--cluster.cpus-per-worker", "0.5", "--cluster.grows-to-cpus", "3"),
    ]

    def nodes() -> list[str]:
        """Addresses of ordered nodes that stand, by their raylets."""
        words = [" ".join(p.cmdline()) for p in head.workers("raylet/raylet")]
        return [ip for ip in ORDERED if any(ip in word for word in words)]

    with started(head, command, log) as run:
        until(lambda: len(nodes()) > 1, "a node for the actors", 300)
        until(lambda: len(head.workers("AugmentActor")) > 1, "an actor on it", 200)
        assert run.wait(600) == 0, log.read_text()[-4000:]
    told = json.loads((out / "streams" / "rank-0.json").read_text())
    assert told["state"] == "finished"
    until(lambda: len(nodes()) == 1, "the ordered nodes to go", 200)
