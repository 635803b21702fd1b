"""Programs as Ray jobs, each after those that it needs; what is done is never done again.

A job is noted with its command when it is submitted and when it is done. A program that was
stopped, and started again, finds jobs that still run on the cluster, and submits those anew that
ended early: a training run goes on from its checkpoint.
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import xxhash

from services.errors import InvalidInputError, SeitError
from services.shards.store import open_store
from services.stream.jobs import Jobs, State
from trainers.data_config import require
from trainers.program import StoppedError
from trainers.reports import read_json
from trainers.signals import stopping

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("services", "trainers")
_POLL_SECONDS = 0.5
_STOP_SECONDS = 120  # that a job has for its checkpoint, once it was asked to end
_LAST_LINES = 15  # of a failed job's output, that the error shows


@dataclass(frozen=True)
class ClusterOptions:
    """Where jobs run, and what each holds there."""

    address: str = ""
    """Ray dashboard, http://HOST:8265; empty for the cluster that RAY_ADDRESS names or else one of
    this machine. On other machines, folders must be shared ones."""
    at_once: int = 1
    """Jobs submitted at a time (count); they run as the cluster has room."""
    cpus: float = 1.0
    """CPU cores that each training job holds."""
    gpus: float = 0.0
    """GPUs that each training job holds."""

    def __post_init__(self) -> None:
        require(self.at_once >= 1, "cluster.at_once", self.at_once, "at least 1")
        for name in ("cpus", "gpus"):
            require(getattr(self, name) >= 0, f"cluster.{name}", getattr(self, name), "at least 0")


@dataclass(frozen=True)
class Job:
    """One program: `python -m MODULE WORDS`.

    outputs: files that stand when it is done. needs: names of the jobs that come before.
    places: whether it asks the cluster for room itself (Ray Data, Ray Train), and so holds none.
    """

    name: str
    module: str
    words: Sequence[str]
    outputs: Sequence[Path]
    needs: Sequence[str] = ()
    places: bool = False

    @property
    def command(self) -> list[str]:
        """As a person would type it."""
        return ["python", "-m", self.module, *self.words]

    @property
    def stands(self) -> bool:
        """Whether all its outputs are there."""
        return all(path.exists() for path in self.outputs)


class JobGraph:
    """Runs jobs on a cluster, with notes in OUT/jobs and what they print in OUT/logs.

    made_from: digest of what they all read; notes of another are refused.
    """

    def __init__(self, jobs: Jobs, options: ClusterOptions, out: Path, made_from: str) -> None:
        self._jobs, self._options = jobs, options
        self._out, self._made_from = out, made_from
        self._notes = open_store(str(out / "jobs"))

    def run(self, graph: Sequence[Job]) -> dict[str, float]:
        """Run what is not done, in the order given as far as `needs` allow: seconds of each.

        A job that fails ends those that need it; all others are run before the error is raised.

        Raises: InvalidInputError for a job that stands with another command, before any is
        submitted; SeitError for one that failed; StoppedError after SIGINT or SIGTERM, when those
        that ran have ended.
        """
        seconds = {job.name: done for job in graph if (done := self._done(job)) is not None}
        waiting = [job for job in graph if job.name not in seconds]
        logger.info("%d jobs, %d of them done before", len(graph), len(seconds))
        running: dict[str, tuple[Job, str, float]] = {}  # by name: (job, submission, began)
        failed: dict[str, str] = {}
        began, computed = time.monotonic(), 0
        with stopping("stopping the jobs that run") as stop:
            while waiting or running:
                if stop.is_set():
                    self._stop(running)
                    raise StoppedError(stop.code)
                waiting = self._submit(waiting, running, seconds, failed)
                stop.wait(_POLL_SECONDS)
                states = self._jobs.states()
                for job, submission, since in list(running.values()):
                    state = states.get(submission)
                    if state is not None and not state.ended:
                        continue
                    del running[job.name]
                    spent = time.monotonic() - since
                    if why := self._ended(job, submission, state, spent):
                        failed[job.name] = why
                        continue
                    seconds[job.name] = spent
                    computed += 1
                    left = len(waiting) + len(running)
                    pace = (time.monotonic() - began) / computed
                    logger.info(
                        "[%d/%d] %s (%.0f s, %s left)",
                        *(len(seconds), len(graph), job.name, spent),
                        timedelta(seconds=round(pace * left)),
                    )
        if failed:
            raise SeitError("\n".join(failed.values()))
        return seconds

    def _submit(
        self,
        waiting: Sequence[Job],
        running: dict[str, tuple[Job, str, float]],
        done: dict[str, float],
        failed: dict[str, str],
    ) -> list[Job]:
        """Submit what may run, as far as there is room; what still waits."""
        left = []
        for job in waiting:
            lost = [name for name in job.needs if name in failed]
            if lost:
                failed[job.name] = f"{job.name} was not run, as {lost[0]} failed"
            elif len(running) >= self._options.at_once or not set(job.needs) <= done.keys():
                left.append(job)
            else:
                running[job.name] = (job, self._start(job), time.monotonic())
        return left

    def _start(self, job: Job) -> str:
        """Submit a job, or find the one that already runs; its name on the cluster."""
        note = self._note(job)
        known = note.get("submission")
        state = self._jobs.states().get(known) if known else None
        if known and state is not None and not state.ended:
            logger.info("%s runs on the cluster already, as %s", job.name, known)
            return str(known)
        attempt = int(note.get("attempt", 0)) + 1
        own = xxhash.xxh3_64_hexdigest(f"{self._out}\n{job.command}".encode())[:8]
        submission = f"seit-{job.name}-{own}-{attempt}-{time.time_ns():x}"
        self._write(job, submission=submission, attempt=attempt, seconds=None)
        logger.debug("$ %s", shlex.join(job.command))
        local, environment = self._jobs.local, {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)}
        words = job.command
        if local:
            words = [sys.executable, *words[1:]]
            environment |= {"PYTHONPATH": str(ROOT), "SEIT_CACHE_DIR": str(self._out / "cache")}
        self._jobs.submit(
            submission,
            shlex.join(words),
            cpus=0 if job.places else self._options.cpus,
            gpus=0 if job.places else self._options.gpus,
            environment=environment,
            modules=() if local else [str(ROOT / package) for package in _PACKAGES],
        )
        return submission

    def _ended(self, job: Job, submission: str, state: State | None, spent: float) -> str:
        """Note how a job ended; why it failed, "" where it did not."""
        text = self._jobs.log(submission) if state is not None else ""
        open_store(str(self._out / "logs")).write(f"{job.name}.log", text.encode())
        if state is not None and state.succeeded and job.stands:
            self._write(job, submission=submission, seconds=round(spent, 1))
            return ""
        lines = "\n".join(f"    {line}" for line in text.strip().splitlines()[-_LAST_LINES:])
        word = "is not known to the cluster any more" if state is None else "failed"
        if state is not None and state.succeeded:
            word = f"ended well but left no {next(p for p in job.outputs if not p.exists())}"
        code = "" if state is None or state.exit_code is None else f" with code {state.exit_code}"
        return (
            f"job {job.name} {word}{code}: {shlex.join(job.command)}\n{lines or '    '}\n"
            f"    All of it is in {self._out / 'logs' / job.name}.log; jobs that are done stand,"
            " and the same command goes on from here"
        )

    def _stop(self, running: dict[str, tuple[Job, str, float]]) -> None:
        for _, submission, _ in running.values():
            self._jobs.stop(submission)
        end = time.monotonic() + _STOP_SECONDS
        names = {submission for _, submission, _ in running.values()}
        logger.info("waiting for %d jobs to save a checkpoint", len(names))
        while names and time.monotonic() < end:
            states = self._jobs.states()
            names = {name for name in names if name in states and not states[name].ended}
            time.sleep(_POLL_SECONDS)

    def _note(self, job: Job) -> dict[str, Any]:
        name = f"{job.name}.json"
        return read_json(self._notes, name) if self._notes.exists(name) else {}

    def _write(self, job: Job, **about: Any) -> None:
        note = self._note(job) | {"command": job.command, "made_from": self._made_from, **about}
        self._notes.write(f"{job.name}.json", json.dumps(note, indent=2).encode())

    def _done(self, job: Job) -> float | None:
        """Seconds that a job took which is done, None where it is not.

        Raises: InvalidInputError where it stands with another command.
        """
        note = self._note(job)
        if not note:
            return None
        for part, ours in (("command", job.command), ("made_from", self._made_from)):
            if note[part] != ours:
                theirs = note[part]
                if part == "command":
                    theirs, ours = shlex.join(note[part]), shlex.join(job.command)
                raise InvalidInputError(
                    f"{self._out} holds job {job.name} with another {part.replace('_', ' ')}:"
                    f" {theirs} there, {ours} here. Nothing was changed there; give another --out,"
                    " or the same pictures and options"
                )
        return float(note["seconds"]) if note.get("seconds") is not None and job.stands else None
