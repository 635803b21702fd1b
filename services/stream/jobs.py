"""Programs as Ray jobs: submitted, looked after and stopped through the Jobs API of a cluster."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray.job_submission import JobStatus, JobSubmissionClient

from services.errors import NotFoundError, StoreError
from services.stream.cluster import local_cluster

logger = logging.getLogger(__name__)

_SILENCE_SECONDS = 120.0  # of the dashboard, after which whoever waits is told
_RETRY_SECONDS = 2.0


@dataclass(frozen=True)
class State:
    """What a job is at. exit_code: of its program, once it ended. message: Ray's own word."""

    ended: bool
    succeeded: bool
    exit_code: int | None
    message: str


class Jobs:
    """The jobs of one cluster. local: it was started here, and ends with this process."""

    def __init__(self, address: str, *, local: bool) -> None:
        self.local = local
        try:
            self._client = JobSubmissionClient(address)
        except (OSError, RuntimeError) as error:
            raise NotFoundError(
                f"no Ray dashboard answers at {address} ({error}): nothing was submitted; give"
                " http://HOST:8265 of a running head, or no address for a cluster of this machine"
            ) from error
        self._address = address

    def submit(
        self,
        name: str,
        command: str,
        *,
        cpus: float,
        gpus: float,
        environment: Mapping[str, str],
        modules: Sequence[str] = (),
    ) -> None:
        """Have the cluster run a shell command, once it has room.

        name: unique on the cluster. cpus, gpus: that the command holds while it runs, on one node.
        modules: folders of Python packages that travel with it.
        """
        runtime: dict[str, Any] = {"env_vars": dict(environment)}
        if modules:
            runtime["py_modules"] = list(modules)
        self._client.submit_job(
            entrypoint=command,
            submission_id=name,
            runtime_env=runtime,
            entrypoint_num_cpus=cpus or None,
            entrypoint_num_gpus=gpus or None,
        )

    def states(self) -> dict[str, State]:
        """All jobs that the cluster knows, by name. Raises: StoreError after two minutes' silence.

        Answers that fail are asked for again: a head may be busy, or restarting.
        """
        began = time.monotonic()
        while True:
            try:
                listed = self._client.list_jobs()
                break
            except (OSError, RuntimeError) as error:
                if time.monotonic() - began > _SILENCE_SECONDS:
                    raise StoreError(
                        f"the Ray dashboard at {self._address} gave no answer for"
                        f" {_SILENCE_SECONDS:.0f} s ({error}); jobs that it has go on, and the same"
                        " command finds them again"
                    ) from error
                time.sleep(_RETRY_SECONDS)
        return {
            job.submission_id: State(
                ended=job.status.is_terminal(),
                succeeded=job.status == JobStatus.SUCCEEDED,
                exit_code=job.driver_exit_code,
                message=job.message or "",
            )
            for job in listed
            if job.submission_id is not None
        }

    def log(self, name: str) -> str:
        """All that a job printed so far."""
        return str(self._client.get_job_logs(name))

    def stop(self, name: str) -> None:
        """Send SIGTERM to a job; returns at once."""
        self._client.stop_job(name)


@contextmanager
def jobs_at(address: str) -> Iterator[Jobs]:
    """The jobs of the cluster whose dashboard stands at `address` (http://HOST:PORT).

    "" takes the cluster that RAY_ADDRESS names or, without one, starts one here that ends with the
    context. Raises: NotFoundError where no dashboard answers.
    """
    if address:
        yield Jobs(address, local=False)
        return
    with local_cluster() as found:
        yield Jobs(found, local=True)
