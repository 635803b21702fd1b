"""Losses with and without TokenAdapt and ColorAdapt, the paper's Figure B:
`python trainers/loss_curves.py --help`.

MTM's training loss, and the training and validation loss of classifiers from scratch, of SeiT and
SeiT++ (appendix 0.A.2): with the augmentations the training loss stays higher, and the validation
loss of long runs does not rise. Every run is a Ray job.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from services.shards.store import open_store
from services.stream.jobs import jobs_at
from trainers.charts import Curve, draw_curves
from trainers.checkpoint import MODEL
from trainers.data_config import require
from trainers.estimate import Estimate, estimate, in_seeds
from trainers.figures import read_curve
from trainers.job_graph import ClusterOptions, Job, JobGraph
from trainers.program import RESUMES, program
from trainers.reports import as_text, machine, strict_json
from trainers.sweep import Data, Setting, Sweep, SweepConfig, described
from trainers.sweep_data import prepare
from trainers.sweep_main import hush_runs

logger = logging.getLogger(__name__)

ARMS = {False: "SeiT", True: "SeiT++"}
"""By whether TokenAdapt and ColorAdapt augment."""
PANELS = {
    "MTM: training loss (nats)": ("mtm", "loss"),
    "from scratch: training loss (nats)": ("classify", "loss"),
    "from scratch: validation loss (nats)": ("classify", "validation_loss"),
}
_TAIL = 0.05  # of a run, over which its last training loss is averaged


@dataclass(frozen=True)
class LossConfig(SweepConfig):
    """Loss curves of MTM and of classification, without and with our augmentations."""

    share: float = 1.0
    """Part of the training rows: with fewer rows, at the same number of steps, overfitting shows
    sooner."""
    cluster: ClusterOptions = field(default_factory=ClusterOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.share <= 1, "share", self.share, "a share above 0 to 1")


@dataclass(frozen=True)
class Losses:
    """Of one arm, over its seeds, in nats. rise: from the lowest validation loss to the last."""

    mtm: Estimate
    training: Estimate
    validation: Estimate
    lowest: Estimate
    rise: Estimate


def main(argv: Sequence[str] | None = None) -> int:
    """0 when table and picture stand, 2 after an error of ours, 130 when interrupted."""
    return program(LossConfig, curves, argv, description=__doc__, interrupted=RESUMES)


def curves(config: LossConfig) -> None:
    """Run what is missing, write OUT/loss_curves.json and .png, and log the table."""
    hush_runs(logger)
    data, overrides = prepare(config)
    sweep = Sweep(config, data, overrides)
    out = config.out.resolve()
    with jobs_at(config.cluster.address) as jobs:
        JobGraph(jobs, config.cluster, out, data.loaded.digest).run(_jobs(config, sweep))
    panels = {
        title: [
            Curve(label, [_folder(config, sweep, kind, ours, s) for s in range(config.seeds)], name)
            for ours, label in ARMS.items()
        ]
        for title, (kind, name) in PANELS.items()
    }
    losses = {label: _losses(config, sweep, ours) for ours, label in ARMS.items()}
    picture = draw_curves(panels, config.out / "loss_curves.png")
    logger.info("%s", as_text(_table(config, losses)))
    logger.info("written: %s", _write(config, data, losses, panels))
    logger.info("written: %s", picture)


def _setting(config: LossConfig, data: Data, kind: str, ours: bool) -> Setting:
    return Setting(kind == "mtm", ours, ours, data.part(config.share))


def _folder(config: LossConfig, sweep: Sweep, kind: str, ours: bool, seed: int) -> Path:
    return sweep.folder(kind, _setting(config, sweep.data, kind, ours), seed)


def _jobs(config: LossConfig, sweep: Sweep) -> list[Job]:
    """Pre-training, and classifiers from scratch, seed by seed."""
    jobs = []
    for seed in range(config.seeds):
        for kind in ("mtm", "classify"):
            for ours in ARMS:
                setting = _setting(config, sweep.data, kind, ours)
                words = {name: rest for name, *rest in sweep.commands(setting, seed)}[kind]
                out = sweep.folder(kind, setting, seed)
                module = f"trainers.{kind}"
                jobs.append(Job(out.name, module, words, [out / MODEL], places=config.ray))
    return jobs


def _losses(config: LossConfig, sweep: Sweep, ours: bool) -> Losses:
    found: dict[str, list[float]] = {name: [] for name in Losses.__dataclass_fields__}
    for seed in range(config.seeds):
        classified = _folder(config, sweep, "classify", ours, seed)
        validation = read_curve(classified, "validation_loss")[1]
        found["mtm"].append(_last(_folder(config, sweep, "mtm", ours, seed)))
        found["training"].append(_last(classified))
        found["validation"].append(validation[-1])
        lowest = min((value for value in validation if not math.isnan(value)), default=math.nan)
        found["lowest"].append(lowest)
        found["rise"].append(validation[-1] - lowest)
    return Losses(**{name: estimate(values) for name, values in found.items()})


def _last(run: Path) -> float:
    """Mean training loss of a run's last steps: single steps are noise."""
    values = read_curve(run, "loss")[1]
    tail = values[-max(1, round(_TAIL * len(values))) :]
    return sum(tail) / len(tail)


def _table(config: LossConfig, losses: Mapping[str, Losses]) -> Table:
    title = f"losses at the end (nats), {in_seeds(config.seeds)}"
    table = Table("", "MTM, training", "classifier, training", "validation", title=title)
    table.add_column("lowest before")
    table.add_column("rise since")
    for label, each in losses.items():
        cells = (each.mtm, each.training, each.validation, each.lowest, each.rise)
        table.add_row(label, *map(_nats, cells))
    return table


def _nats(found: Estimate) -> str:
    spread = "" if math.isnan(found.error) else f" ± {found.error:.3f}"
    return f"{found.mean:.3f}{spread}"


def _write(
    config: LossConfig,
    data: Data,
    losses: Mapping[str, Losses],
    panels: Mapping[str, Sequence[Curve]],
) -> Path:
    """What was measured; no path of this machine in it."""
    names = ("mtm", "scratch", "mtm_options", "classify_options", "coloradapt", "share", "seeds")
    content = {
        "name": "loss_curves",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "data": {"pictures": config.pictures or "a dataset that stood", **described(data)},
        "recipes": {name: getattr(config, name) for name in names},
        "losses": {
            label: {name: found.about() for name, found in vars(each).items()}
            for label, each in losses.items()
        },
        "validation": {
            curve.label: [_points(run, curve.figure) for run in curve.runs]
            for title, drawn in panels.items()
            if "validation" in title
            for curve in drawn
        },
    }
    text = strict_json(content, indent=2) + "\n"
    open_store(str(config.out.resolve())).write("loss_curves.json", text.encode())
    return config.out / "loss_curves.json"


def _points(run: Path, figure: str) -> list[tuple[int, float]]:
    steps, values = read_curve(run, figure)
    return list(zip(steps, values, strict=True))


if __name__ == "__main__":
    raise SystemExit(main())
