"""Where a run computes: Ray Train workers on a cluster, or this process alone.

The only module of the trainers that knows Ray. A worker function gets the run and a
`Place`; it never learns which of the two it runs under.
"""

from __future__ import annotations

import importlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from services.errors import IntegrityError, InvalidInputError, SeitError, StoreError
from trainers.config import ClusterConfig
from trainers.context import Place
from trainers.signals import Stop

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from services.stream.cluster import Flag

C = TypeVar("C")
Metrics = dict[str, float]

_POLL_SECONDS = 0.2
_ASK_SECONDS = 0.5
_HEALTH_CHECK_SECONDS = "0.5"
_DRAIN_SECONDS = "1"  # between looks whether a node is drained, which may have no more than 25
_RESIZE_SECONDS = 15.0  # between looks whether an elastic run could have more workers
_START_SECONDS = "30"  # until a group of workers that cannot all be placed is tried smaller


def launch(
    config: C, cluster: ClusterConfig, worker: Callable[[C, Place], Metrics], stop: Stop
) -> Metrics:
    """Run `worker(config, place)` on every worker that `cluster` asks for; rank 0's answer.

    worker: a function of an importable module (Ray sends its name, not its code).
    stop: once it is set, workers save a checkpoint and end.

    Raises: what a worker raised, if it was an error of ours; CapacityError; InvalidInputError.
    """
    if cluster.no_ray:
        torch.set_num_threads(max(1, round(cluster.cpus_per_worker)))
        return worker(config, _alone(stop))
    return _with_ray(config, cluster, worker, stop)


def _alone(stop: Stop) -> Place:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Place(rank=0, world=1, device=device, should_stop=stop.is_set)


def _with_ray(
    config: C, cluster: ClusterConfig, worker: Callable[[C, Place], Metrics], stop: Stop
) -> Metrics:
    # Ray Train asks its workers how they are; the default of 2 s also delays the end of a run.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _HEALTH_CHECK_SECONDS)
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", _DRAIN_SECONDS)
    if cluster.min_workers:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", _START_SECONDS)
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from services.stream.cluster import Flag, connect, reach

    connect()
    stop.arm()  # Ray's core catches SIGTERM to print where it struck, and dies of it
    most = reach("CPU", cluster.grows_to_cpus), reach("GPU", cluster.grows_to_gpus)
    _check_room(cluster, *most)
    flag = Flag()
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    workers: Any = cluster.workers  # the types are those of Ray Train's old API
    if cluster.min_workers:
        workers = cluster.min_workers, cluster.workers
    trainer = TorchTrainer(
        _ray_worker,
        train_loop_config={
            "config": config,
            "module": worker.__module__,
            "name": worker.__qualname__,
            "cluster": cluster,
            "flag": flag,
        },
        torch_config=TorchConfig(backend=_collectives(cluster)),
        scaling_config=ScalingConfig(  # type: ignore[call-arg]
            num_workers=workers,
            elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(  # type: ignore[call-arg]
            # Checkpoints are ours, on the run's own store; Ray only notes its state here.
            storage_path=os.path.join(tempfile.gettempdir(), f"seit-ray-train-{os.getuid()}"),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    answer: dict[str, Any] = {}

    def fit() -> None:
        try:
            answer["result"] = trainer.fit()
        except Exception as error:  # noqa: BLE001 - handed to the caller's thread, not swallowed
            answer["error"] = error

    # In a thread, so that our handlers of signals hold, not those that fit() would set.
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    told = False
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        if stop.is_set() and not told:
            told = True
            flag.set()
    if "error" in answer:
        raise _ours(answer["error"])
    returned = answer["result"].return_value or {}
    if isinstance(returned, SeitError):
        raise returned
    return dict(returned)


def _collectives(cluster: ClusterConfig) -> str:
    """What workers sum their gradients by. NCCL takes one rank a GPU: those that share one, as
    parts of a GPU let them, go through the host."""
    gpus = cluster.gpus_per_worker
    return "nccl" if gpus >= 1 or (gpus and cluster.workers == 1) else "gloo"


def _check_room(cluster: ClusterConfig, cpus: float, gpus: float) -> None:
    each_of = (("CPU", cluster.cpus_per_worker, cpus), ("GPU", cluster.gpus_per_worker, gpus))
    for kind, each, have in each_of:
        fewest = cluster.min_workers or cluster.workers
        need = each * fewest
        if need > have:
            raise InvalidInputError(
                f"{fewest} workers of {each:g} {kind}s need {need:g}; the cluster has"
                f" at most {have:g}, so the run would wait for ever: use fewer workers"
                " (--cluster.workers) or a larger cluster; where an"
                " autoscaler makes it larger, say to how much (--cluster.grows-to-cpus,"
                " --cluster.grows-to-gpus)"
            )


def _ours(error: BaseException) -> BaseException:
    """The project's own error inside Ray's wrapping of it, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        failures = getattr(seen, "worker_failures", None) or {}
        for inner in failures.values():
            found = _ours(inner)
            if isinstance(found, SeitError):
                return found
        if isinstance(seen, SeitError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error


def _ray_worker(sent: dict[str, Any]) -> Any:
    import ray.train
    import ray.train.torch

    from services.stream.pool import Beside, Pool, Sharing

    _log_ours()
    cluster: ClusterConfig = sent["cluster"]
    context = ray.train.get_context()
    torch.set_num_threads(max(1, int(cluster.cpus_per_worker)))
    pool = Pool(
        actors=cluster.augment_actors,
        max_actors=cluster.augment_max_actors,
        cpus=cluster.augment_cpus_per_actor,
        gpus=cluster.augment_gpus_per_actor,
        fetchers=cluster.fetch_tasks,
        head_start=cluster.head_start,
        grows_to_cpus=cluster.grows_to_cpus,
        grows_to_gpus=cluster.grows_to_gpus,
        beside=Beside(
            cluster.augment_cpu_actors,
            cluster.augment_cpus_per_cpu_actor,
            cluster.augment_cpu_share,
        )
        if cluster.augment_cpu_actors
        else None,
    )
    place = Place(
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        device=ray.train.torch.get_device(),
        should_stop=_AskedToStop(sent["flag"]),
        node_leaves=_NodeLeaves(),
        pool=pool,
        sharing=Sharing(cluster.share_lag) if cluster.share_lag else None,
        trainer_cpus=cluster.cpus_per_worker * context.get_world_size(),
        report=lambda metrics: ray.train.report(dict(metrics)),
    )
    worker = getattr(importlib.import_module(sent["module"]), sent["name"])
    flag: Flag = sent["flag"]
    if (noted := flag.error()) is not None:
        return noted  # on every rank alike, before any of them waits for another
    try:
        return worker(sent["config"], place)
    except (StoreError, IntegrityError):
        raise  # a storage may recover: worth what `max_failures` allows
    except SeitError as error:
        if place.world == 1:
            return error
        # It would only happen again, but the other ranks may be waiting for this one: raising
        # ends them all, and the next start of the group finds the note.
        flag.give_up(error)
        raise


def _log_ours() -> None:
    """Our own lines go to the worker's stderr, which Ray brings to the driver; not all of Ray's."""
    from services.stream.cluster import hush

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("trainers", "services"):
        ours = logging.getLogger(name)
        ours.setLevel(logging.INFO)
        ours.handlers = [handler]
        ours.propagate = False
    hush()


class _NodeLeaves:
    """Whether a node of the group is drained, as Ray Train told this worker.

    Its own question, `ray.train.get_preemption_info`, waits for all ranks at every reading. They
    agree by a sum that the loop makes anyway, so a field of Ray's own is read; the test of this
    tells of a version that has others.
    """

    def __init__(self) -> None:
        self._told = False

    def __call__(self) -> bool:
        from ray.train.v2._internal.execution.context import get_train_context

        leaves = get_train_context().preemption_context.preemption_info is not None
        if leaves and not self._told:
            self._told = True
            logger.warning("a node of this run leaves: a checkpoint at every reading until then")
        return leaves


class _AskedToStop:
    """Whether the driver asked for an end: asked of the flag twice a second, not at every step."""

    def __init__(self, flag: Flag) -> None:
        self._flag, self._asked_at, self._answer = flag, 0.0, False

    def __call__(self) -> bool:
        if not self._answer and time.monotonic() - self._asked_at >= _ASK_SECONDS:
            self._answer = self._flag.is_set()
            self._asked_at = time.monotonic()
        return self._answer
