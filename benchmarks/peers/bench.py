"""What the benchmarks of streams share: data of each contender, runs, and figures out of them."""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from operator import truediv
from pathlib import Path

from peers import data, environment, process
from peers.job import Job

OURS, OURS_RAY, RAY_IDLE = "seit", "seit_ray", "ray_idle"
OTHERS = ("mosaic", "lit", "web")
READ_PARQUET = "ray_parquet"
BATCH = 1024
_OF_THIS_PROJECT = (OURS, OURS_RAY, RAY_IDLE, READ_PARQUET)
_LOST_SHARE = 0.02  # of an epoch's rows, by peers that leave out what does not fill a batch


@dataclass(frozen=True)
class Run:
    """Epochs of one process in order, and its memory.

    core_seconds: processor time of the process itself, without that of its children.
    """

    rows: list[int]
    seconds: list[float]
    first_batch: list[float]
    core_seconds: list[float]
    resident_bytes: int
    own_bytes: int

    def rate(self, start: int) -> float:
        """Median rows/s of the epochs from number `start` on, waits for first batches included."""
        return _median_ratio(self.rows[start:], self.seconds[start:])

    def core_rate(self, start: int) -> float:
        """The same for each second of processor time."""
        return _median_ratio(self.rows[start:], self.core_seconds[start:])

    def first(self, start: int) -> float:
        """Median seconds to the first batch of the epochs from number `start` on."""
        return statistics.median(self.first_batch[start:])


class Bench:
    """Rows in a scratch folder, each contender's copy of them, and runs over those."""

    def __init__(
        self,
        folder: Path,
        rows: int,
        peers_venv: Path | None,
        limit_seconds: float | None = None,
    ) -> None:
        """limit_seconds: of a peer's run; ours takes what it takes."""
        self.folder, self.rows, self._limit_seconds = folder, rows, limit_seconds
        self._python = environment.python_of(peers_venv or folder / "peers-venv")
        self._raw = folder / "raw"
        data.draw(rows, self._raw)
        self._label_sum = data.label_sum(self._raw)
        self._runs = 0

    def versions(self) -> dict[str, str]:
        """Versions in the peers' environment."""
        return environment.versions(self._python)

    def write(self, contenders: Iterable[str]) -> None:
        """The rows in the format of each of these, two at a time."""
        formats = {_format(name) for name in contenders} - {RAY_IDLE}
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self._write, sorted(formats)))

    def _write(self, name: str) -> None:
        job = Job(name, "write", str(self.data(name)), "", raw=str(self._raw), rows=self.rows)
        process.run(job, self.folder / f"write-{name}", self._interpreter(name))

    def data(self, contender: str) -> Path:
        """Folder of a contender's copy."""
        return self.folder / _format(contender)

    def job(self, contender: str, workers: int = 0, **options: object) -> Job:
        """A job over the copy on local disk, with an empty cache; `options` change it."""
        self._runs += 1
        job = Job(
            contender,
            "stream",
            str(self.data(contender)),
            "",
            cache=str(self.folder / f"cache-{self._runs}"),
            rows=self.rows,
            batch=BATCH,
            workers=workers,
        )
        return replace(job, **options)  # type: ignore[arg-type]

    def run(self, job: Job, **variables: str) -> Run:
        """Run a job and check that whole epochs gave every row once. Raises: process.SlowError."""
        scratch = self.folder / f"run-{job.contender}"
        limit = None if job.contender in (OURS, OURS_RAY, RAY_IDLE) else self._limit_seconds
        python = self._interpreter(job.contender)
        outcome = process.run(job, scratch, python, limit, **variables)
        epochs = outcome.result["epochs"]
        if job.contender != RAY_IDLE and not job.limit and not job.state:
            self._check(job, epochs)
        return Run(
            [epoch["rows"] for epoch in epochs],
            [epoch["seconds"] for epoch in epochs],
            [epoch["first_batch_seconds"] for epoch in epochs],
            [epoch["core_seconds"] for epoch in epochs],
            outcome.resident_bytes,
            outcome.own_bytes,
        )

    def _check(self, job: Job, epochs: list[dict[str, int]]) -> None:
        for epoch in epochs:
            rows, total = epoch["rows"], epoch["label_sum"]
            whole = rows == self.rows and total == self._label_sum
            ours = job.contender in (OURS, OURS_RAY)
            if not whole and (ours or abs(rows - self.rows) > _LOST_SHARE * self.rows):
                raise AssertionError(
                    f"{job.contender} with {job.workers} workers gave {rows} rows with labels that"
                    f" add up to {total}, expected {self.rows} and {self._label_sum}"
                )

    def drop_caches(self) -> None:
        """Remove the caches of runs that have ended."""
        for cache in self.folder.glob("cache-*"):
            shutil.rmtree(cache)

    def _interpreter(self, contender: str) -> str:
        return sys.executable if contender in _OF_THIS_PROJECT else str(self._python)


def _format(contender: str) -> str:
    return OURS if contender == OURS_RAY else contender


def _median_ratio(rows: list[int], seconds: list[float]) -> float:
    ratio: float = statistics.median(map(truediv, rows, seconds))
    return ratio
