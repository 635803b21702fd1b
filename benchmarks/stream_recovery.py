"""How long a trainer waits when what works for its stream dies: all augmentation actors at most
10 s, a node 20 s.

Two Ray nodes stand on loopback. A trainer on the first one reads the recipe of masked token
modelling from actors on both. All actors are killed at once; later the second node is, all of its
processes. The figure is the longest wait for one batch in the 45 s after a death. That each batch
is the right one is what the tests of tests/system/test_chaos.py hold.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import harness
import numpy as np
from peers import data, nodes, seit
from peers.job import Job

TARGETS = {"actor": 10.0, "node": 20.0}


def main() -> None:
    options = harness.options(__doc__, harness.Options)
    rows, repeats = 16_384, 1 if options.quick else 3
    report = harness.Report("stream_recovery", options, packages=("ray", "torch"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data.draw(rows, folder / "raw")
        ids, labels = np.load(folder / "raw" / "ids.npy"), np.load(folder / "raw" / "labels.npy")
        seit.write(ids, labels, folder / "root", shard_rows=1024)
        job = Job("seit", "stream", str(folder / "root"), "", cache="cache", rows=rows)
        told = []
        for repeat in range(repeats):
            with nodes.cluster(folder / f"cluster-{repeat}", 2, {}) as cluster:
                told.append(cluster.drive("peers.recovery", job, 2))
    for name, target in TARGETS.items():
        longest = max(one[name]["longest"] for one in told)
        usual = max(one[name]["usual"] for one in told)
        report.add(f"{name}_longest_wait_seconds", longest, "s", peer=usual, at_most=target)
    report.note(
        f"The longest of {repeats} runs; peer is the usual wait for a batch of {job.batch} rows."
        " A node that is silent for 3 s is given up (health_check_ settings of the head)."
    )
    report.finish()


if __name__ == "__main__":
    main()
