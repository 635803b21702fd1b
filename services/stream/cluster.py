"""Joining a Ray cluster, in one place: a job's, one that runs here, or a local one of our own."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from services.errors import NotFoundError

logger = logging.getLogger(__name__)

_ANSWERS_SECONDS = 5.0  # that a head has to take a connection; Ray itself would ask for minutes


def connect() -> None:
    """Join the cluster that RAY_ADDRESS or a job names, else the one running here, or start one.

    Does nothing when this process has joined already.

    Raises: NotFoundError where nothing answers at RAY_ADDRESS.
    """
    if ray.is_initialized():
        return
    address, killed = _address()
    if killed:
        logger.warning(
            "the Ray that ran here at %s was killed: this program starts one of its own (`ray stop`"
            " clears the old one's traces)",
            killed,
        )
    ray.init(address, log_to_driver=True, logging_level=logging.WARNING)
    hush()
    logger.info(
        "joined Ray at %s: %g CPUs, %g GPUs",
        ray.get_runtime_context().gcs_address,
        capacity("CPU"),
        capacity("GPU"),
    )


def _address() -> tuple[str | None, str]:
    """What `ray.init` is told, None lets it look for itself; and where a killed Ray of this machine
    stood, "" if none did."""
    named = os.environ.get("RAY_ADDRESS", "")
    if named == "local":
        return named, ""
    if named:
        if not _may_answer(named):
            raise NotFoundError(
                f"no Ray answers at {named!r}, which RAY_ADDRESS names, within"
                f" {_ANSWERS_SECONDS:g} s: nothing was started; start the"
                " cluster, correct the address, or unset RAY_ADDRESS to compute on this machine"
            )
        return None, ""
    left = ray._private.utils.read_ray_address()  # where Ray notes what ran here
    if left and not _may_answer(left):
        return "local", left
    return None if left else "local", ""


def starts_own() -> bool:
    """Whether `connect` would start a Ray of this program's own: none is named, none runs here that
    others may join. Raises: NotFoundError, as `connect`."""
    return not ray.is_initialized() and _address()[0] == "local"


def _may_answer(address: str) -> bool:
    """False where nothing listens at HOST:PORT; what is no such address is Ray's to judge."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWERS_SECONDS).close()
    except OSError:
        return False
    return True


def hush() -> None:
    """Keep Ray's libraries from a line for every dataset, worker and bar, in this process."""
    import ray.data  # noqa: F401 - its import sets the levels that are changed here

    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns of many read tasks, which a run of many steps has by design, and of hidden bars.
    for name in ("ray.data._internal.progress", "ray.data._internal.util"):
        logging.getLogger(name).setLevel(logging.ERROR)


def capacity(kind: str) -> float:
    """How much of a resource ("CPU", "GPU") the whole cluster has, whoever holds it."""
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return total.get(kind, 0.0)


def reach(kind: str, grows_to: float = 0.0) -> float:
    """How much of it the cluster may come to have: where nodes come when something waits for them,
    all that its autoscaler may start, else its capacity.

    grows_to: what a person says of that; the autoscalers of open-source Ray tell nobody.
    """
    # What Ray's own libraries ask before they wait for nodes; there is no public way.
    most = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return max(capacity(kind), float(most.get(kind, 0)), grows_to)


class _Flag:
    def __init__(self) -> None:
        self._set = False
        self._error: Exception | None = None

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set

    def give_up(self, error: Exception) -> None:
        self._error = self._error or error

    def error(self) -> Exception | None:
        return self._error


class Flag:
    """A wish to stop that travels: raised by the driver, seen by tasks and actors of a cluster.

    It also keeps the first error for which trying again makes no sense.
    """

    def __init__(self) -> None:
        # On the driver's own node: one that dies elsewhere must not take the flag with it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(num_cpus=0)(_Flag)
        self._actor: Any = actor.options(scheduling_strategy=here).remote()

    def set(self) -> None:
        """Raise the flag; returns when everyone can see it."""
        ray.get(self._actor.set.remote())

    def is_set(self) -> bool:
        """Whether it is raised: one question to the actor."""
        return bool(ray.get(self._actor.is_set.remote()))

    def give_up(self, error: Exception) -> None:
        """Note an error that would only happen again; the first one stays."""
        ray.get(self._actor.give_up.remote(error))

    def error(self) -> Exception | None:
        """What was noted, None if nothing was."""
        error: Exception | None = ray.get(self._actor.error.remote())
        return error


def dashboard() -> str:
    """Where the dashboard of the cluster that this process has joined answers: http://HOST:PORT.

    Raises: NotFoundError for a cluster without one.
    """
    context: Any = ray.init(ignore_reinit_error=True, logging_level=logging.WARNING)
    if not context.dashboard_url:
        raise NotFoundError(
            "this Ray has no dashboard, through which jobs are submitted: install ray[default], or"
            " name a head that has one"
        )
    return f"http://{context.dashboard_url}"


@contextmanager
def local_cluster() -> Iterator[str]:
    """Address of a cluster for programs started by this one: the one connected to, or a new one.

    One that was started here ends with the context. Raises: NotFoundError, as `connect`.
    """
    connect()
    try:
        address: str = ray.get_runtime_context().gcs_address
        yield address
    finally:
        ray.shutdown()
