"""What comes back from an ingest's actors: shards in order, sums, and when it is too much damage.

Of each row the driver keeps the hashes of its grid and of its picture, 16 bytes; of pictures that
cannot be read the first `MAX_SKIPPED` reasons. Nothing else grows with the source.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from services.pictures import check_unreadable
from services.shards.manifest import MAX_SKIPPED
from services.shards.writer import ShardResult
from services.sources.sample import PictureSource
from services.stream.ingest_actor import SHARD, STATS
from services.stream.ingest_config import IngestConfig
from services.wire.seit import v1 as wire

_EARLY = 1000
"""Pictures that are seen before a source of unknown size can be found too damaged to go on."""

_THEN = "the job stopped, and committed no version"


@dataclass
class Intake:
    """The sums so far. done: of all jobs' sizes. results: shards by split, with their places."""

    source: PictureSource
    config: IngestConfig
    done: int = 0
    skipped: list[wire.Skipped] = field(default_factory=list)
    results: dict[str, list[tuple[int, int, ShardResult]]] = field(default_factory=dict)
    met: wire.Intake = field(default_factory=wire.Intake)
    _damaged: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.met.source, self.met.files = self.source.kind, self.source.files

    def add(self, row: dict[str, Any]) -> None:
        """One answer of an actor."""
        pictures, dropped, absent, uncaptioned, done = json.loads(row["met"])
        self.met.pictures += pictures
        self.met.dropped += dropped
        self.met.absent += absent
        self.met.uncaptioned += uncaptioned
        self.done += done
        for path, reason, whole in json.loads(row["faults"]):
            self.met.unreadable += 1
            if whole:
                self._damaged.add(path)
            if len(self.skipped) < MAX_SKIPPED:
                self.skipped.append(wire.Skipped(path=path, reason=reason))
        if row["shard"]:
            shard = SHARD.validate_json(row["shard"])
            self.met.rows += shard.rows
            result = ShardResult(
                shard,
                np.frombuffer(row["code_counts"], "<i8").astype(np.int64),
                np.frombuffer(row["grid_hashes"], "<u8").astype(np.uint64),
                np.frombuffer(row["picture_hashes"], "<u8").astype(np.uint64),
                STATS.validate_json(row["coefficients"]),
            )
            found = self.results.setdefault(row["split"], [])
            found.append((row["job"], row["number"], result))

    def check(self, *, ended: bool) -> None:
        """InvalidInputError where more than the share allowed is damaged, as soon as it is sure.

        Archives that are damaged are counted against all archives, unreadable pictures against all
        pictures; where nobody knows how many these are, against those seen, once they are many.
        """
        reasons, share = [one.reason for one in self.skipped], self.config.max_unreadable
        files = max(1, self.source.files)
        check_unreadable(reasons, files, "archives", _THEN, count=len(self._damaged), share=share)
        total = max(self.met.pictures, 1)
        if not ended:
            known = self.source.unit == "pictures"
            total = max(total, sum(self.source.sizes) if known else _EARLY)
        count = self.met.unreadable - len(self._damaged)
        check_unreadable(reasons, total, "pictures", _THEN, count=count, share=share)

    def ordered(self) -> dict[str, list[ShardResult]]:
        """The shards of each split in the order of the source, whoever was ready first."""
        names = sorted(self.results, key=lambda name: min(self.results[name])[:2])
        return {
            name: [one for _, _, one in sorted(self.results[name], key=lambda item: item[:2])]
            for name in names
        }
