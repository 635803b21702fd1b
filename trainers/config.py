"""A run as frozen dataclasses that validate themselves.

Every field is an option (`--order.global-batch 4096`); its docstring is its help, with the unit.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from services.augment.config import Output
from services.plan.draws import check_seed
from trainers.data_config import (
    AugmentConfig,
    DataConfig,
    OrderConfig,
    ResumeConfig,
    check_finite,
    check_rate,
    require,
)
from trainers.model_config import ClassifierModelConfig, MtmModelConfig, ViTConfig
from trainers.optim import peak_rate

__all__ = [
    "ClassifierModelConfig",
    "ClassifyRun",
    "ClusterConfig",
    "LoopConfig",
    "MtmModelConfig",
    "MtmRun",
    "OptimConfig",
    "Run",
    "TokenRun",
    "ViTConfig",
]

MACHINE_FIELDS = ("recipe", "out", "cluster", "resume")
"""Parts of a run that may differ when it is resumed, ..."""

UPKEEP_FIELDS = ("checkpoint_every", "validate_every", "log_every", "keep", "grad_accum", "compile")
"""... and those of its loop: neither changes what is trained."""

SUBSET_FIELDS = ("rows", "storage", "subset_seed")
"""Parts of a run's data that say nothing where all rows are read."""


SCHEDULE_FIELDS = ("schedule", "power")
"""Parts of a run's optimizer that say nothing where the rate falls along a cosine."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its learning rate over the run, and the target's smoothing.

    The highest rate is base_lr * (global batch / base_batch) ** base_power.
    """

    base_lr: float = 1.5e-4
    """Learning rate at a global batch of base_batch rows."""
    base_batch: int = 256
    """Rows that base_lr stands for."""
    base_power: float = 1.0
    """Growth of the rate with the batch: 1 linear, 0.5 square root, 0 none."""
    schedule: Literal["cosine", "polynomial"] = "cosine"
    """How the rate falls after the warm-up: half a cosine, or (share of steps left) ** power."""
    power: float = 1.0
    """Power of the polynomial; 1 is a straight line."""
    min_lr: float = 0.0
    """Learning rate at the end."""
    warmup_epochs: float = 40.0
    """Epochs over which the rate rises linearly from 0."""
    weight_decay: float = 0.05
    """Decoupled weight decay (share of a weight per unit of rate); none on biases and norms."""
    layer_decay: float = 1.0
    """Factor on the rate for each block further from the head; 1 treats all alike."""
    beta1: float = 0.9
    """Decay of the gradient's average, per step."""
    beta2: float = 0.95
    """Decay of the squared gradient's average, per step."""
    clip: float = 3.0
    """Largest global norm of a step's gradient; 0 does not clip."""
    smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""

    def __post_init__(self) -> None:
        for name in ("base_lr", "base_batch"):
            require(getattr(self, name) > 0, f"optim.{name}", getattr(self, name), "above 0")
        for name in ("base_power", "power", "min_lr", "warmup_epochs", "weight_decay", "clip"):
            require(getattr(self, name) >= 0, f"optim.{name}", getattr(self, name), "at least 0")
        for name in ("beta1", "beta2", "smoothing"):
            check_rate(f"optim.{name}", getattr(self, name))
        require(
            0 < self.layer_decay <= 1,
            "optim.layer_decay",
            self.layer_decay,
            "above 0 and at most 1",
        )


@dataclass(frozen=True)
class LoopConfig:
    """How long a run is, how it computes, and what it keeps."""

    epochs: int = 400
    """Passes over the training split (count)."""
    seed: int = 0
    """Seed of order, augmentation, masks, initial weights and dropout."""
    precision: Literal["bf16", "float32"] = "bf16"
    """Arithmetic of the forward and backward pass; weights and optimizer are float32."""
    grad_accum: int = 1
    """Parts that a worker's rows of a step are computed in, one after another (saves memory)."""
    ema: float = 0.0
    """Highest decay of the weights' moving average, per step; 0 keeps none. At step t the decay is
    at most t / (t + 9), so that runs of any length forget their first weights. The average is what
    gets validated."""
    deterministic: bool = False
    """Only operations that give the same bits every time, at some cost in speed. Segmentation and
    TokenAdapt have no such form on GPUs, and refuse it there."""
    compile: bool = False
    """Compile the model with torch.compile: minutes at the start, faster steps on a GPU."""
    checkpoint_every: int = 500
    """Steps between checkpoints: at most this many are lost when a machine dies."""
    keep: int = 2
    """Checkpoints that are kept (count), besides the best."""
    validate_every: int = 10
    """Epochs between validations; the last epoch is always validated."""
    log_every: int = 10
    """Steps between readings of the device, where figures are recorded and a stop is obeyed."""

    def __post_init__(self) -> None:
        for name in (
            *("epochs", "grad_accum", "checkpoint_every"),
            *("keep", "validate_every", "log_every"),
        ):
            require(getattr(self, name) >= 1, f"loop.{name}", getattr(self, name), "at least 1")
        require(0 <= self.ema < 1, "loop.ema", self.ema, "0, or a decay below 1")
        check_seed("loop.seed", self.seed)


@dataclass(frozen=True)
class ClusterConfig:
    """Where a run computes. A cluster is found through RAY_ADDRESS, or made on this machine."""

    workers: int = 1
    """Training workers (count); they share out the blocks of a step evenly."""
    min_workers: int = 0
    """Fewest workers (count) with which the run goes on when nodes leave; 0 for `workers`. Where
    their number does not divide a step's blocks, some take a block more than others."""
    cpus_per_worker: float = 1.0
    """CPU cores that a worker asks for."""
    gpus_per_worker: float = 0.0
    """GPUs that a worker asks for."""
    augment_in: Literal["actors", "trainer"] = "actors"
    """Where rows are augmented: in actors (threads with no_ray), which may have GPUs of their own,
    or in the trainer's process, on the device that it trains on. The batches are the same."""
    augment_actors: int = 1
    """Augmentation actors of each worker's stream (count)."""
    augment_max_actors: int = 0
    """Augmentation actors that a stream may grow to (count); 0 for no more than augment_actors."""
    augment_cpus_per_actor: float = 0.5
    """CPU cores that an augmentation actor asks for; fractions are allowed."""
    augment_gpus_per_actor: float = 0.0
    """GPUs that an augmentation actor asks for, and computes on; fractions share one."""
    augment_cpu_actors: int = 0
    """Further augmentation actors of each stream (count), which compute on CPUs beside those with
    GPUs, where CPUs would idle."""
    augment_cpus_per_cpu_actor: float = 1.0
    """CPU cores that each of these asks for."""
    augment_cpu_share: float = 0.25
    """Share of the batches that these make: as many as they can while the others make the rest."""
    grows_to_cpus: float = 0.0
    """CPU cores that the cluster may come to have where its autoscaler starts nodes for what waits,
    which Ray does not say; 0 for those that it has."""
    grows_to_gpus: float = 0.0
    """GPUs that it may come to have, likewise."""
    fetch_tasks: int = 2
    """Fetch tasks of each worker's stream at a time (count), a process each."""
    head_start: int = 16
    """Steps that each worker makes itself while tasks and actors, or a shared stream's service,
    start (count). Fewer large ones before actors on CPUs, none before those on GPUs."""
    share_lag: int = 0
    """Share one augmented stream with the cluster's jobs of the same data, order, augmentation,
    length and workers, and lag at most so many steps behind the fastest; 0 for one's own stream."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What each of several workers holds: a copy of the model and its optimizer (ddp), or a shard
    of them (fsdp: less memory, more traffic). A run may go on with the other."""
    no_ray: bool = False
    """Run in this process alone, on one device, without Ray."""
    max_failures: int = 3
    """Times that workers may die and be started again from the last checkpoint (count)."""

    def __post_init__(self) -> None:
        for name in ("workers", "augment_actors", "fetch_tasks"):
            require(getattr(self, name) >= 1, f"cluster.{name}", getattr(self, name), "at least 1")
        for name in (
            *("cpus_per_worker", "gpus_per_worker", "augment_max_actors"),
            *("augment_cpus_per_actor", "augment_gpus_per_actor", "max_failures"),
            *("head_start", "share_lag", "augment_cpu_actors", "grows_to_cpus", "grows_to_gpus"),
        ):
            require(getattr(self, name) >= 0, f"cluster.{name}", getattr(self, name), "at least 0")
        require(
            not self.augment_cpu_actors or self.augment_gpus_per_actor > 0,
            "cluster.augment_cpu_actors",
            self.augment_cpu_actors,
            "0 unless the other actors have GPUs (--cluster.augment-gpus-per-actor); actors of one"
            " kind are --cluster.augment-actors",
        )
        require(
            self.augment_cpus_per_cpu_actor > 0,
            "cluster.augment_cpus_per_cpu_actor",
            self.augment_cpus_per_cpu_actor,
            "above 0",
        )
        require(
            0 < self.augment_cpu_share < 1,
            "cluster.augment_cpu_share",
            self.augment_cpu_share,
            "between 0 and 1",
        )
        require(
            0 <= self.min_workers <= self.workers,
            "cluster.min_workers",
            self.min_workers,
            f"0 to cluster.workers, {self.workers}",
        )
        require(
            not (self.no_ray and self.workers > 1),
            "cluster.workers",
            self.workers,
            "1 with --cluster.no-ray",
        )
        require(
            self.parallel == "ddp" or self.workers > 1,
            "cluster.parallel",
            self.parallel,
            "ddp on a single worker, which has nothing to share out",
        )
        require(
            not (self.no_ray and self.share_lag),
            "cluster.share_lag",
            self.share_lag,
            "0 with --cluster.no-ray: jobs share a stream through a cluster",
        )


@dataclass(frozen=True)
class Run:
    """What every training run consists of; kinds of runs add their data and their model."""

    out: str
    """Folder of the run's files: a path or URL. A run that stands there is resumed."""
    order: OrderConfig
    optim: OptimConfig
    loop: LoopConfig
    cluster: ClusterConfig
    recipe: str = field(default="", kw_only=True, compare=False)
    """Name of the run, of those listed above, that all other options change."""

    def __post_init__(self) -> None:
        check_finite(asdict(self))
        require(
            self.optim.warmup_epochs < self.loop.epochs,
            "optim.warmup_epochs",
            self.optim.warmup_epochs,
            f"less than loop.epochs, {self.loop.epochs}",
        )
        optim = self.optim
        batch = self.order.global_batch
        peak = peak_rate(optim.base_lr, batch, optim.base_batch, optim.base_power)
        require(
            optim.min_lr <= peak,
            "optim.min_lr",
            optim.min_lr,
            f"at most the highest rate, {peak:.4g} (base_lr * (order.global_batch / base_batch) **"
            " base_power), from which the rate falls to it",
        )
        blocks = self.order.global_batch // self.order.block
        require(
            blocks % self.cluster.workers == 0,
            "cluster.workers",
            self.cluster.workers,
            f"a divisor of the {blocks} blocks of a step (order.global_batch / order.block): shares"
            " of unequal size take as long as the largest, and the other workers wait",
        )

    @property
    def worlds(self) -> range:
        """Numbers of workers that the run may have."""
        return range(self.cluster.min_workers or self.cluster.workers, self.cluster.workers + 1)

    def identity(self) -> dict[str, Any]:
        """The parts that decide what is trained: a resumed run must agree in them."""
        kept = {key: value for key, value in asdict(self).items() if key not in MACHINE_FIELDS}
        kept["loop"] = {k: v for k, v in kept["loop"].items() if k not in UPKEEP_FIELDS}
        if self.optim.schedule == "cosine":  # as earlier programs noted it, which knew no other
            kept["optim"] = {k: v for k, v in kept["optim"].items() if k not in SCHEDULE_FIELDS}
        return {"kind": type(self).__name__, **kept}

    @property
    def may_differ(self) -> tuple[str, ...]:
        """Parts of the identity that this run may change where it is resumed."""
        return ()

    def to_json(self) -> str:
        """All options, for people and for the metadata of a model."""
        return json.dumps({"kind": type(self).__name__, **asdict(self)})


@dataclass(frozen=True)
class TokenRun(Run):
    """A run on the stream of a dataset's tokens."""

    data: DataConfig
    augment: AugmentConfig
    resume: ResumeConfig = field(default_factory=ResumeConfig, kw_only=True)

    def identity(self) -> dict[str, Any]:
        """As `Run`, but not where the data stand: positions name their contents by digest."""
        parts = super().identity()
        mixed = self.data.mixed
        parts["data"] = {k: v for k, v in parts["data"].items() if k != "root"} | {
            "mixture": dict(zip((n for n, _ in mixed), self.data.mixture.values(), strict=True)),
            "mixture_versions": {name: version for name, version in mixed if version},
        }
        if not parts.get("model", {}).get("resize_positions", True):
            del parts["model"]["resize_positions"]
        if not self.data.rows:  # as earlier programs noted it, which knew no subsets
            parts["data"] = {k: v for k, v in parts["data"].items() if k not in SUBSET_FIELDS}
        return parts

    @property
    def reads_masks(self) -> bool:
        """Whether rows come with their masks."""
        return False

    @property
    def output(self) -> Output | None:
        """What the model reads, ids or embeddings; None for what the recipe gives."""
        return None

    @property
    def may_differ(self) -> tuple[str, ...]:
        versions = ("data.version", "data.mixture_versions.")
        # Earlier programs noted the root; a run that a damaged shard ended may go on without it.
        always = ("data.root", "data.skip_damaged")
        return (*always, *(versions if self.resume.allow_dataset_version else ()))


@dataclass(frozen=True)
class MtmRun(TokenRun):
    """Pre-training by masked token modelling."""

    model: MtmModelConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        check_patch(self.augment, self.model)


@dataclass(frozen=True)
class ClassifyRun(TokenRun):
    """Training a classifier, from scratch or from an MTM model."""

    model: ClassifierModelConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        check_patch(self.augment, self.model)


def refuse_deterministic_gpu(run: Run) -> None:
    """For models with operations that have no deterministic form on GPUs: the backward passes of
    adaptive pooling (UperNet), bilinear resizing and `grid_sample`.

    Raises: InvalidInputError, which names the way out.
    """
    alone = run.cluster.no_ray and torch.cuda.is_available()
    require(
        not (run.loop.deterministic and (run.cluster.gpus_per_worker > 0 or alone)),
        "loop.deterministic",
        run.loop.deterministic,
        "false on a GPU for this kind of model, as PyTorch has no deterministic form of some of its"
        " operations there; leave it out, or train on CPUs (--cluster.gpus-per-worker 0, without"
        " --cluster.no-ray where there is a GPU)",
    )


def check_patch(augment: AugmentConfig, model: ViTConfig) -> None:
    """Require patches that leave no rest of the crop."""
    require(
        augment.crop % model.patch == 0,
        "augment.crop",
        augment.crop,
        f"a multiple of model.patch, {model.patch} tokens",
    )
