"""Programs as Ray jobs: submitted, looked after and stopped through the Jobs API of a cluster."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from services.errors import CapacityError, InvalidInputError, NotFoundError, StoreError
from services.stream.cluster import dashboard, local_cluster, starts_own

T = TypeVar("T")

_PATIENCE_SECONDS = 120.0  # with a dashboard that does not do what it is asked
_RETRY_SECONDS = 2.0
_PORT_SECONDS = 10.0
_CLIENT_ADDRESS = "RAY_API_SERVER_ADDRESS"


@dataclass(frozen=True)
class State:
    """What a job is at. exit_code: of its program, once it ended. message: Ray's own word."""

    ended: bool
    succeeded: bool
    exit_code: int | None
    message: str


class Jobs:
    """The jobs of one cluster. local: it is of this machine alone, and has this program's files."""

    def __init__(self, address: str, *, local: bool) -> None:
        self.local = local
        logging.getLogger("ray").setLevel(logging.WARNING)  # it tells of every upload
        try:
            with _only(address):
                self._client = JobSubmissionClient(address)
        except AuthenticationError as error:
            raise InvalidInputError(
                f"the Ray dashboard at {address} wants a token: nothing was submitted; set"
                " RAY_AUTH_MODE=token, with the cluster's token in RAY_AUTH_TOKEN_PATH or in"
                " ~/.ray/auth_token"
            ) from error
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
        modules: folders of Python packages that travel with it. Raises: StoreError.
        """
        runtime: dict[str, Any] = {"env_vars": dict(environment)}
        if modules:
            runtime["py_modules"] = list(modules)
        asked = 0

        def submit() -> None:
            nonlocal asked
            asked += 1
            if asked > 1 and name in self._known():
                return  # it came through, though its answer did not
            self._client.submit_job(
                entrypoint=command,
                submission_id=name,
                runtime_env=runtime,
                entrypoint_num_cpus=cpus or None,
                entrypoint_num_gpus=gpus or None,
            )

        self._patiently(submit)

    def states(self) -> dict[str, State]:
        """All jobs that the cluster knows, by name. Raises: StoreError."""
        return self._patiently(self._known)

    def _known(self) -> dict[str, State]:
        return {
            job.submission_id: State(
                ended=job.status.is_terminal(),
                succeeded=job.status == JobStatus.SUCCEEDED,
                exit_code=job.driver_exit_code,
                message=job.message or "",
            )
            for job in self._client.list_jobs()
            if job.submission_id is not None
        }

    def _patiently(self, ask: Callable[[], T]) -> T:
        """The answer, asked for again where it fails: a head may be busy, restarting, or without
        its agent yet. Raises: StoreError after two minutes."""
        began = time.monotonic()
        while True:
            try:
                return ask()
            except (OSError, RuntimeError) as error:
                if time.monotonic() - began > _PATIENCE_SECONDS:
                    raise StoreError(
                        f"the Ray dashboard at {self._address} did not do what it was asked for"
                        f" {_PATIENCE_SECONDS:.0f} s ({error}); jobs that it has go on, and the"
                        " same command finds them again"
                    ) from error
                time.sleep(_RETRY_SECONDS)

    def log(self, name: str) -> str:
        """All that a job printed so far. Raises: StoreError."""
        return self._patiently(lambda: str(self._client.get_job_logs(name)))

    def stop(self, name: str) -> None:
        """Send SIGTERM to a job; returns at once. Raises: StoreError."""
        self._patiently(lambda: self._client.stop_job(name))


@contextmanager
def _only(address: str) -> Iterator[None]:
    """Have Ray's client take `address`, which it would else give up for that of RAY_ADDRESS."""
    before = os.environ.get(_CLIENT_ADDRESS)
    os.environ[_CLIENT_ADDRESS] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CLIENT_ADDRESS]
        else:
            os.environ[_CLIENT_ADDRESS] = before


@contextmanager
def jobs_at(address: str) -> Iterator[Jobs]:
    """The jobs of the cluster whose dashboard stands at `address` (http://HOST:PORT).

    "" takes the cluster that RAY_ADDRESS names or, without one, starts one here that ends with the
    context. Raises: NotFoundError where no dashboard answers; CapacityError where another Ray of
    this machine stands in the way of a new one.
    """
    if address:
        yield Jobs(address, local=False)
        return
    if starts_own():
        _wait_for_agent_port()
    with local_cluster():
        named = os.environ.get("RAY_ADDRESS", "local") not in ("", "local")
        yield Jobs(dashboard(), local=not named)


def _wait_for_agent_port() -> None:
    """A Ray takes jobs through its agent, whose port `ray.init` cannot change: the second Ray of a
    machine would start, and refuse every job. One that ends just now gives it up in seconds."""
    port = DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
    began = time.monotonic()
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            return
        if time.monotonic() - began > _PORT_SECONDS:
            raise CapacityError(
                f"another Ray of this machine holds port {port}, at which a Ray takes jobs: one"
                " started here would take none, so nothing was started; wait until that one has"
                " ended, or give it the jobs by the address of its dashboard, such as"
                " http://127.0.0.1:8265 (--cluster.address), if it lives as long as they do"
            )
        time.sleep(0.2)
