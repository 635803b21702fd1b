"""A job that only succeeds where driver and workers run the code that was submitted with it."""

import os
import sys

import ray

import services


def place() -> tuple[str, str]:
    """(node, folder that `services` was imported from) of the process that runs this."""
    return ray.get_runtime_context().get_node_id(), os.path.dirname(services.__file__)


ray.init()
nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")}
found = {place()}
asked = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(place)
for _ in range(20):
    found |= set(ray.get([asked.remote() for _ in nodes]))
    if nodes <= {node for node, _ in found}:
        break
wrong = [folder for _, folder in found if "working_dir_files" not in folder]
if wrong or not nodes <= {node for node, _ in found}:
    sys.exit(f"seen {found} on nodes {nodes}")
sys.stdout.write(f"all nodes run the submitted code ({len(nodes)} workers)\n")
