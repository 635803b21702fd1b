"""What a storage study leaves: its table, its JSON, and its chart beside the paper's figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from services.shards.store import open_store
from trainers.charts import COLOURS, save_figure
from trainers.estimate import Estimate, estimate, in_seeds
from trainers.reports import as_text, machine, strict_json
from trainers.storage_arms import METHODS, Arm, Method, StudyConfig, arms
from trainers.sweep import Data, described
from trainers.sweep_data import kind_of

PAPER: Mapping[Method, Sequence[tuple[float, float]]] = {
    "full": ((140.0, 81.8),),
    "random": ((54.6, 74.0),),
    "cscore": ((53.3, 73.3),),
    "jpeg": ((11.0, 74.6),),
    "resolution": ((9.6, 75.2),),
    "seit": ((1.4, 74.0), (1.1, 70.2), (0.8, 66.3), (0.5, 59.7), (0.3, 47.2)),
    "seitpp": ((1.4, 77.8), (1.1, 76.5), (0.8, 74.1), (0.5, 70.0), (0.3, 60.6)),
}
"""(GB, top-1 in percent) of ViT-B on ImageNet-1k (Tables 1 and 2)."""
_MARKS: Mapping[Method, str] = {
    "full": "*",
    "random": "o",
    "cscore": "s",
    "jpeg": "^",
    "resolution": "v",
    "seit": "D",
    "seitpp": "P",
}
_HUES: Mapping[Method, str] = {
    **dict(zip(METHODS, ("#333333", *COLOURS[2:], COLOURS[0], COLOURS[1]), strict=False)),
}


@dataclass(frozen=True)
class Found:
    """One point. pictures, bytes: that it keeps to train on. steps: of the classifier, and of
    pre-training before. top1: share. loss: nats; both of the last validation."""

    arm: Arm
    seed: int
    pictures: int
    bytes: int
    steps: int
    pretraining_steps: int
    top1: float
    loss: float


@dataclass(frozen=True)
class _Line:
    """An arm over its seeds."""

    arm: Arm
    points: Sequence[Found]

    @property
    def top1(self) -> Estimate:
        return estimate([point.top1 for point in self.points])

    @property
    def bytes(self) -> float:
        return statistics.fmean(point.bytes for point in self.points)


def report(config: StudyConfig, data: Data, found: Sequence[Found]) -> tuple[str, Sequence[Path]]:
    """(the table as text, the files OUT/storage_study.json and .png)."""
    lines = [_Line(arm, [f for f in found if f.arm == arm]) for arm in arms(config)]
    files = [_write(config, data, lines), _draw(config, lines)]
    return as_text(_table(config, lines)), files


def _table(config: StudyConfig, lines: Sequence[_Line]) -> Table:
    full = lines[0].bytes
    title = f"storage against accuracy, {in_seeds(config.seeds)}"
    table = Table("kept", "pictures", "bytes", "of full", "steps", "top-1 (%)", title=title)
    table.add_column("paper: of full, top-1")
    for column in table.columns[1:]:
        column.justify = "right"
    told: set[Method] = set()
    for line in lines:
        first, method = line.points[0], line.arm.method
        steps = f"{first.steps:,}"
        if first.pretraining_steps:
            steps = f"{first.pretraining_steps:,} + {steps}"
        paper = "" if method in told else _paper(method)
        if method not in told and told:
            table.add_section()
        told.add(method)
        table.add_row(
            line.arm.title,
            f"{first.pictures:,}",
            _size(line.bytes),
            f"{line.bytes / full:.1%}",
            steps,
            str(line.top1),
            paper,
        )
    return table


def _paper(method: Method) -> str:
    size, top1 = PAPER[method][0]
    return f"{size / PAPER['full'][0][0]:.0%}, {top1:.1f}"


def _size(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def _write(config: StudyConfig, data: Data, lines: Sequence[_Line]) -> Path:
    """Every point; no path of this machine in it."""
    names = (
        *("pixels", "scratch", "finetune", "mtm", "tokenizer_recipe", "tokenadapt_recipe"),
        *("options", "pixel_options", "token_options", "mtm_options", "tokenizer_options"),
        *("tokenadapt_options", "cscore_options", "cscore_models", "keep"),
    )
    content = {
        "name": "storage_study",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "pictures": kind_of(config.images).title,
        "tokens": described(data),
        "recipes": {name: getattr(config, name) for name in names},
        "coloradapt": config.coloradapt,
        "arms": [_arm(line, lines[0].bytes) for line in lines],
        "paper": {method: PAPER[method] for method in METHODS},
    }
    text = strict_json(content, indent=2) + "\n"
    open_store(str(config.out.resolve())).write("storage_study.json", text.encode())
    return config.out / "storage_study.json"


def _arm(line: _Line, full: float) -> dict[str, Any]:
    found = line.top1
    points = [{k: v for k, v in asdict(point).items() if k != "arm"} for point in line.points]
    return {
        "method": line.arm.method,
        "value": line.arm.value,
        "bytes": line.bytes,
        "share_of_full": line.bytes / full,
        "top1": found.about(),
        "points": points,
    }


def _draw(config: StudyConfig, lines: Sequence[_Line]) -> Path:
    """This study, and beside it the paper's; storage on a log axis."""
    figure = Figure(figsize=(11, 4.4))
    ours, theirs = figure.subplots(1, 2)
    for method in METHODS:
        alike = [line for line in lines if line.arm.method == method]
        if not alike:
            continue
        found = [line.top1 for line in alike]
        ours.errorbar(
            [line.bytes for line in alike],
            [100 * each.mean for each in found],
            yerr=[0 if math.isnan(each.error) else 100 * each.error for each in found],
            **_style(method),
        )
        for line, each in zip(alike, found, strict=True):
            _name(ours, line.arm, line.bytes, 100 * each.mean)
        paper = PAPER[method]
        theirs.errorbar(
            [size * 1e9 for size, _ in paper], [top1 for _, top1 in paper], **_style(method)
        )
    error = "" if config.seeds == 1 else ", mean ± standard error"
    ours.set_title(f"measured: {in_seeds(config.seeds)}{error}", fontsize=10)
    theirs.set_title("paper: ViT-B, ImageNet-1k (Tables 1 and 2)", fontsize=10)
    for axis in (ours, theirs):
        axis.set_xscale("log")
        axis.set_xlabel("bytes of what is kept to train on (log scale)")
        axis.set_ylabel("top-1 (%)")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    theirs.legend(frameon=False, fontsize=8, loc="lower right")
    return save_figure(figure, config.out / "storage_study.png")


def _style(method: Method) -> dict[str, Any]:
    large = method == "full"
    return {
        "color": _HUES[method],
        "marker": _MARKS[method],
        "markersize": 12 if large else 6,
        "linewidth": 1.2,
        "capsize": 2,
        "label": METHODS[method],
    }


def _name(axis: Axes, arm: Arm, x: float, y: float) -> None:
    """What a point is, where its method has several."""
    if arm.method == "full":
        return
    text = f"q{arm.value:g}" if arm.method == "jpeg" else f"{arm.value:.0%}"
    axis.annotate(text, (x, y), (4, 4), textcoords="offset points", fontsize=6, alpha=0.8)
