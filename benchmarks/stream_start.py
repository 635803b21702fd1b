"""The first batch behind augmentation actors, which take their time to start: within 5 s with an
empty cache, as the trainer's process augments its first batches itself.

Beside it the same stream without that head start. Each run is a fresh process with an empty cache
on local disk; the clock runs from building the stream, libraries imported and Ray running. The 60th
batch says what the head start costs the actors, which start on the same cores.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import harness
import numpy as np
from peers import data, process, seit
from peers.job import Job

ROWS, STEPS, ACTORS = 65_536, 60, 2
HEAD_STARTS = (16, 0)


def main() -> None:
    options = harness.options(__doc__, harness.Options)
    repeats = 1 if options.quick else 5
    report = harness.Report("stream_start", options, packages=("ray", "torch"))
    first: dict[int, list[float]] = {number: [] for number in HEAD_STARTS}
    whole: dict[int, list[float]] = {number: [] for number in HEAD_STARTS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data.draw(ROWS, folder / "raw")
        ids, labels = np.load(folder / "raw" / "ids.npy"), np.load(folder / "raw" / "labels.npy")
        seit.write(ids, labels, folder / "root")
        job = Job("seit_actors", "stream", str(folder / "root"), "", rows=ROWS, workers=ACTORS)
        for repeat in range(repeats):
            for number in HEAD_STARTS:
                cache = str(folder / f"cache-{repeat}-{number}")
                one = replace(job, cache=cache, limit=STEPS, head_start=number)
                epoch = process.run(one, folder / "run").result["epochs"][0]
                first[number].append(epoch["first_batch_seconds"])
                whole[number].append(epoch["seconds"])
    with_it, without = HEAD_STARTS
    for name, found, limit in (
        ("first_batch_cold_seconds", first, 5.0),
        (f"{STEPS}th_batch_seconds", whole, None),
    ):
        peer = statistics.median(found[without])
        report.add(name, statistics.median(found[with_it]), "s", peer=peer, at_most=limit)
    report.note(
        f"Medians of {repeats} runs, in turn; peer: without the head start. {ACTORS} actors,"
        " batches of 1024 rows, masked token modelling without TokenAdapt."
    )
    report.finish()


if __name__ == "__main__":
    main()
