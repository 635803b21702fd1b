"""The first batch behind augmentation actors, which take their time to start: within 5 s with an
empty cache, as the trainer's process augments its first batches itself.

Beside it the same stream without that head start; and both again where a service makes the stream
for all jobs that ask for it, of which there is one. Each run is a fresh process with an empty cache
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
SHARES = {"": 0, "shared_": 8}
"""Beginning of the figures' names: lag of a stream that is shared, 0 for one that is not."""


def main() -> None:
    options = harness.options(__doc__, harness.Options)
    repeats = 1 if options.quick else 3
    report = harness.Report("stream_start", options, packages=("ray", "torch"))
    contenders = [(share, number) for share in SHARES for number in HEAD_STARTS]
    first: dict[tuple[str, int], list[float]] = {key: [] for key in contenders}
    whole: dict[tuple[str, int], list[float]] = {key: [] for key in contenders}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data.draw(ROWS, folder / "raw")
        ids, labels = np.load(folder / "raw" / "ids.npy"), np.load(folder / "raw" / "labels.npy")
        seit.write(ids, labels, folder / "root")
        job = Job("seit_actors", "stream", str(folder / "root"), "", rows=ROWS, workers=ACTORS)
        for repeat in range(repeats):
            for share, number in contenders:
                cache = str(folder / f"cache-{repeat}-{share}{number}")
                one = replace(job, cache=cache, limit=STEPS, head_start=number)
                one = replace(one, share_lag=SHARES[share])
                epoch = process.run(one, folder / "run").result["epochs"][0]
                first[share, number].append(epoch["first_batch_seconds"])
                whole[share, number].append(epoch["seconds"])
    with_it, without = HEAD_STARTS
    for share in SHARES:
        for name, found, limit in (
            (f"{share}first_batch_cold_seconds", first, 5.0),
            (f"{share}{STEPS}th_batch_seconds", whole, None),
        ):
            peer, own = (statistics.median(found[share, one]) for one in (without, with_it))
            report.add(name, own, "s", peer=peer, at_most=limit)
    report.note(
        f"Medians of {repeats} runs, in turn; peer: without the head start. {ACTORS} actors,"
        " batches of 1024 rows, masked token modelling without TokenAdapt."
    )
    report.finish()


if __name__ == "__main__":
    main()
