"""What one process of a benchmark is asked to do. Imports the standard library alone.

Contenders run in an environment of their own, where this project's dependencies may be missing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What a loopback server is given; it believes everyone."""

Action = Literal["write", "stream", "save"]


@dataclass(frozen=True)
class Job:
    """One process.

    contender: name of the module in `peers` that knows the library.
    action: "write" the rows of `raw` to `data`, "stream" epochs, or "save" positions: stream one
    epoch and keep the loader's state after the steps that `states` names.
    raw: folder of ids.npy and labels.npy. data: folder or URL of the contender's own format.
    cache: node-local folder, empty at a cold start. endpoint: of the S3 server, "" for local disk.
    cache_bytes: limit of that folder. lanes: fixed parts of the rows. window: shards of one that a
    shuffle mixes.
    workers: loader processes beside the trainer's, 0 for none. cpus: of the Ray cluster.
    head_start: steps that a stream behind actors makes in its own process meanwhile, at most.
    share_lag: steps that the consumers of a stream made for all may be apart, 0 for one alone.
    epochs: how many; limit: batches after which a stream ends, 0 for whole epochs.
    state: file with a saved position to start from, "" for a plain start.
    result: file that receives the figures.
    """

    contender: str
    action: Action
    data: str
    result: str
    raw: str = ""
    cache: str = ""
    endpoint: str = ""
    rows: int = 0
    batch: int = 1024
    crop: int = 28
    cache_bytes: int = 20 * 10**9
    lanes: int = 8
    window: int = 16
    workers: int = 0
    cpus: int = 2
    head_start: int = 16
    share_lag: int = 0
    epochs: int = 1
    limit: int = 0
    state: str = ""
    states: dict[str, str] = field(default_factory=dict)

    def dump(self, path: Path) -> None:
        """Write the job to a file."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Job:
        """The job in a file."""
        return cls(**json.loads(path.read_text()))
