"""A consumer of a shared stream as a driver of its own, led by a test line by line.

    python shared_job.py ADDRESS LAG IDLE_SECONDS START STOP

The request, as `tests.system.stream_job.write_request` writes it, stands in the file REQUEST. Each
line on standard input is the number of batches to take next; each batch is answered with its step
and digest, the end of the stream with "end" and how it was shared.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import ray
import torch

from services.stream.loader import Stream
from services.stream.pool import Pool, Sharing
from tests.system.stream_job import digest, read_request


def main() -> None:
    address, lag, idle_seconds, start, stop = sys.argv[1:]
    torch.set_num_threads(1)
    ray.init(address=address, log_to_driver=False)
    stream = Stream(
        read_request(Path(os.environ["REQUEST"])),
        start=int(start),
        stop=int(stop),
        pool=Pool(),
        sharing=Sharing(int(lag), float(idle_seconds)),
    )
    batches = iter(stream)
    for line in sys.stdin:
        for _ in range(int(line)):
            batch = next(batches, None)
            if batch is None:
                break
            sys.stdout.write(f"{batch.step} {digest(batch)}\n")
            sys.stdout.flush()
    batches.close()  # type: ignore[attr-defined]
    sys.stdout.write(f"end {stream.flow().shared}\n")


if __name__ == "__main__":
    main()
