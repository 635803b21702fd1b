"""Nodes for Ray's autoscaler on further loopback addresses: each a real `ray start`.

The head's monitor process loads this, as it would load a cloud's provider; what it orders, and when
it lets a node go, is Ray's own decision.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from typing import Any

import psutil
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from tests.system.clusters import free_port

HEAD = "127.0.0.2"


class LoopbackProvider(NodeProvider):
    """A node's id is its address, from 127.0.0.3 on. `provider.gcs` of the configuration: the
    head's address; `provider.scratch`: Ray's folder, by which a node's processes are known.
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._lock = threading.RLock()
        self._made = 0
        self._tags: dict[str, dict[str, str]] = {
            HEAD: {
                TAG_RAY_NODE_KIND: NODE_KIND_HEAD,
                TAG_RAY_USER_NODE_TYPE: "head",
                TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
            }
        }

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        with self._lock:
            return [ip for ip, tags in self._tags.items() if tag_filters.items() <= tags.items()]

    def is_running(self, node_id: str) -> bool:
        return node_id in self._tags

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self._tags

    def node_tags(self, node_id: str) -> dict[str, str]:
        return self._tags[node_id]

    def internal_ip(self, node_id: str) -> str:
        return node_id

    external_ip = internal_ip

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        with self._lock:
            self._tags[node_id].update(tags)

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        for _ in range(count):
            with self._lock:
                self._made += 1
                ip = f"127.0.0.{2 + self._made}"
            subprocess.run(
                [
                    *("ray", "start", "--address", self.provider_config["gcs"]),
                    *("--node-ip-address", ip, "--num-cpus", str(int(resources["CPU"]))),
                    *("--object-store-memory", "200000000", "--disable-usage-stats"),
                    *("--dashboard-agent-listen-port", str(free_port())),
                ],
                env={
                    **os.environ,
                    "RAY_CLOUD_INSTANCE_ID": ip,
                    "RAY_NODE_TYPE_NAME": tags[TAG_RAY_USER_NODE_TYPE],
                },
                check=True,
                timeout=120,
            )
            with self._lock:
                self._tags[ip] = {**tags, TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE}

    def terminate_node(self, node_id: str) -> None:
        with self._lock:
            self._tags.pop(node_id)
        for process in psutil.process_iter():
            try:
                words = " ".join(process.cmdline())
                if self.provider_config["scratch"] in words and node_id in words:
                    process.send_signal(signal.SIGTERM)
            except psutil.Error:
                continue
