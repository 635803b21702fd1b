"""The Ray cluster's own numbers, over its dashboard's HTTP API: nodes, jobs, actors.

The service is useful without a cluster and imports nothing of Ray. It asks from time to time,
beside its requests; a cluster that does not answer is told as such, and makes a request wait only
after an idle time, for 2 s at most.
"""

from __future__ import annotations

import http.client
import json
import logging
import shlex
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from services.errors import InvalidInputError
from services.stats.flows import rfc3339
from services.stats.fresh import Fresh
from services.wire.seit import v1 as wire

logger = logging.getLogger(__name__)

REACHABLE, UNREACHABLE, ABSENT = "reachable", "unreachable", "not configured"

_TIMEOUT_SECONDS = 2.0
_MAX_BYTES = 32 << 20  # of one answer
_STATES = ("PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED")
_PATHS = {
    "nodes": "/api/v0/nodes?limit=10000",
    "actors": "/api/v0/actors?limit=10000"
    "&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE",
    "jobs": "/api/jobs/",
}

_ODD = (
    OSError,
    http.client.HTTPException,  # another protocol, or an answer that was cut
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,  # a time that no number of ours can be
    RecursionError,
)
"""The answers are another program's: whatever does not fit makes it unreachable."""


@dataclass(frozen=True)
class View:
    """The cluster as it answered. jobs: newest first. actors: alive ones by name of the run."""

    cluster: wire.Cluster
    jobs: Sequence[wire.Job] = ()
    actors: Mapping[str, int] = field(default_factory=dict)


class RayCluster:
    """The cluster whose dashboard stands at `url` (`http://host:8265`); "" for none.

    token: of a cluster with authentication; sent to this address only, never shown.
    fresh_seconds: half of the longest age of a view. clock: seconds, monotonic.

    Raises: InvalidInputError for an address of another kind.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        fresh_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        parts = urlsplit(url)
        if url and (parts.scheme not in ("http", "https") or not parts.hostname or parts.username):
            raise InvalidInputError(
                "the address of the Ray dashboard must be http://HOST:PORT, without a user or a"
                " password in it: correct SEIT_STATS_RAY or --ray"
            )
        self._url, self._token = url.rstrip("/"), token
        self._seen = Fresh(lambda waited: self._look(), 2 * fresh_seconds, clock)

    def view(self) -> View:
        """The cluster as it answered last; never raises for a cluster that does not."""
        return self._seen.get()

    def stamp(self) -> int | None:
        """Changes with the view; None where the cluster would have to be asked."""
        return self._seen.stamp()

    def _look(self) -> View:
        if not self._url:
            return View(wire.Cluster(state=ABSENT, reason="no Ray dashboard was named"))
        now = rfc3339(time.time())
        try:
            with ThreadPoolExecutor(len(_PATHS), thread_name_prefix="seit-ray") as pool:
                answers = dict(zip(_PATHS, pool.map(self._ask, _PATHS.values()), strict=True))
            return _view(answers, now)
        except _ODD as error:
            reason = _reason(error)
            logger.info("the Ray dashboard is not reached: %s", reason)
            return View(wire.Cluster(state=UNREACHABLE, reason=reason, asked=now))

    def _ask(self, path: str) -> Any:
        request = urllib.request.Request(self._url + path)
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
            data = answer.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError("its answer is too large")
        return json.loads(data)


def _reason(error: Exception) -> str:
    """Why, in words that hold nothing of the address or of the answer."""
    if isinstance(error, urllib.error.HTTPError):
        return f"it answered HTTP {error.code}"
    if isinstance(error, TimeoutError):
        return f"no answer within {_TIMEOUT_SECONDS:g} s"
    if isinstance(error, OSError):
        cause = getattr(error, "reason", error)
        return getattr(cause, "strerror", None) or type(cause).__name__
    return "it answered something that is not Ray's state API"


def _view(answers: Mapping[str, Any], now: str) -> View:
    nodes = answers["nodes"]["data"]["result"]["result"]
    actors = answers["actors"]["data"]["result"]["result"]
    alive = [node for node in nodes if node["state"] == "ALIVE"]
    by_job = Counter(str(actor["job_id"]) for actor in actors if actor["state"] == "ALIVE")
    raw = sorted(answers["jobs"], key=lambda job: -(job.get("start_time") or 0))
    jobs = [_job(job, by_job) for job in raw]
    by_run: Counter[str] = Counter()
    for job in jobs:
        if job.run and job.state == "RUNNING":
            by_run[job.run] += job.actors
    return View(
        wire.Cluster(
            state=REACHABLE,
            asked=now,
            nodes_alive=len(alive),
            nodes_dead=len(nodes) - len(alive),
            cpus=_resource(alive, "CPU"),
            gpus=_resource(alive, "GPU"),
            actors_alive=sum(by_job.values()),
        ),
        jobs,
        by_run,
    )


def _resource(nodes: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(float((node.get("resources_total") or {}).get(name, 0)) for node in nodes)


def _job(raw: Mapping[str, Any], actors: Mapping[str, int]) -> wire.Job:
    program, run = _command(str(raw.get("entrypoint") or ""))
    driver, state = str(raw.get("job_id") or ""), str(raw.get("status") or "").upper()
    return wire.Job(
        id=str(raw.get("submission_id") or driver)[:200],
        state=state if state in _STATES else "",
        program=program,
        run=run,
        started=_time(raw.get("start_time")),
        ended=_time(raw.get("end_time")),
        actors=actors.get(driver, 0),
    )


def _time(milliseconds: object) -> str:
    return rfc3339(milliseconds / 1000) if isinstance(milliseconds, int) and milliseconds else ""


def _command(line: str) -> tuple[str, str]:
    """(program, run) of a command line; nothing else of it is told."""
    try:
        words = shlex.split(line)
    except ValueError:
        return "", ""
    program = next((word for word in words if word.endswith(".py")), "")
    if not program and any(PurePosixPath(word).name == "seit" for word in words):
        program = "seit"
    run = ""
    for at, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == "--out":
            run = value if equals else next(iter(words[at + 1 :]), "")
    return PurePosixPath(program).name[:100], PurePosixPath(run).name[:128]
