"""Charts of a run's figures and of a dataset's storage, as PNG files."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a file is drawn, never a window

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from services.folders import replaced
from services.shards.manifest import LoadedManifest
from services.stats.report import storage_report
from trainers.figures import read_curve

COLOURS = ("#2a6f97", "#e07a5f", "#588157", "#8d6a9f", "#b08900", "#6c757d")
_FIGURE_DPI = 130
_LACKING = re.compile(r"Glyph (\d+) .* missing from font")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Curve:
    """One figure of runs that differ in their seed: steps, and a value of each run at each step."""

    label: str
    runs: Sequence[Path]
    figure: str


def _smooth(values: Sequence[float]) -> list[float]:
    """Exponential average, about 20 steps wide: single steps of a small batch are noise.

    What is no number stays a gap, and the average goes on behind it.
    """
    smooth: list[float] = []
    average: float | None = None
    for value in values:
        if not math.isfinite(value):
            smooth.append(math.nan)
            continue
        average = value if average is None else 0.9 * average + 0.1 * value
        smooth.append(average)
    return smooth


def draw_curves(panels: Mapping[str, Sequence[Curve]], path: Path) -> Path:
    """One panel a title, each with its curves; a thin line a run, with a gap where a value is no
    number.

    Raises: NotFoundError, FormatError as `read_curve`.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 3.8), squeeze=False)
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for colour, curve in zip(COLOURS, curves, strict=False):
            for number, run in enumerate(curve.runs):
                steps, values = read_curve(run, curve.figure)
                noisy = len(values) > 60
                axis.plot(
                    steps,
                    _smooth(values) if noisy else values,
                    color=colour,
                    alpha=0.85,
                    linewidth=1.4,
                    marker=None if noisy else "o",
                    markersize=3,
                    label=curve.label if number == 0 else None,
                )
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("steps")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9)
    return save_figure(figure, path)


def draw_bars(
    panels: Mapping[str, Mapping[str, Sequence[float]]], groups: Sequence[str], path: Path
) -> Path:
    """One panel a title: for each group of bars a value of each series, by its label.

    A title that ends in "(log scale)" has its axis so.
    """
    figure, axes = plt.subplots(len(panels), 1, figsize=(9, 2.9 * len(panels)), squeeze=False)
    for axis, (title, series) in zip(axes[:, 0], panels.items(), strict=True):
        width = 0.8 / len(series)
        for number, (colour, (label, values)) in enumerate(
            zip(COLOURS, series.items(), strict=False)
        ):
            places = [
                group + (number - (len(series) - 1) / 2) * width for group in range(len(groups))
            ]
            bars = axis.bar(places, values, width * 0.92, color=colour, label=label)
            labels = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values]
            axis.bar_label(bars, labels, fontsize=7, padding=1)
        axis.set_xticks(range(len(groups)), groups)
        axis.set_title(title, fontsize=11)
        if title.endswith("(log scale)"):
            axis.set_yscale("log")
        axis.margins(y=0.15)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8, ncols=len(series), loc="upper left",
                    bbox_to_anchor=(0, 1.02))  # fmt: skip
    return save_figure(figure, path)


def draw_storage(loaded: LoadedManifest, path: Path) -> Path:
    """Bytes an image: raw pixels, source files, plain 16-bit ids, our shards, order-0 entropy."""
    total = storage_report(loaded.manifest).total
    if total is None or not total.rows:
        raise ValueError(f"dataset {loaded.manifest.dataset} has no rows to draw")
    spec = loaded.spec
    bars = {
        "raw pixels": total.pixel_bytes / total.rows,
        "source files": total.source_bytes / total.rows,
        "ids, 16 bits each": 2.0 * spec.grid_height * spec.grid_width,
        "token shards": total.bytes_per_image,
        "order-0 entropy": total.entropy_bytes_per_image,
    }
    figure, axis = plt.subplots(figsize=(7.5, 3.4))
    names = list(bars)[::-1]
    values = [bars[name] for name in names]
    axis.barh(
        names, values, color=[COLOURS[0] if n == "token shards" else "#adb5bd" for n in names]
    )
    raw = bars["raw pixels"]
    for place, value in enumerate(values):
        axis.text(value, place, f"  {value:,.0f} B  ({value / raw:.2%})", va="center", fontsize=9)
    axis.set_xscale("log")
    axis.set_xlim(right=raw * 12)
    axis.set_xlabel("bytes an image (log scale); share of the raw pixels")
    axis.set_title(
        f"{loaded.manifest.dataset}: {total.rows:,} images,"
        f" {spec.grid_height}x{spec.grid_width} tokens, K={spec.codes}",
        fontsize=11,
    )
    axis.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG file, whole or not at all, and let go of it; the path.

    Signs that its font lacks, as of names of classes, are drawn as boxes and told in one line.
    Raises: StoreError where it cannot be written.
    """
    try:
        with warnings.catch_warnings(record=True) as warned, replaced(path) as part:
            figure.tight_layout()
            figure.savefig(part, dpi=_FIGURE_DPI, format="png")
    finally:
        plt.close(figure)
    lacking: dict[str, None] = {}  # matplotlib warns of each sign, and each time that it meets it
    for warning in warned:
        if found := _LACKING.match(str(warning.message)):
            lacking[chr(int(found[1]))] = None
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if lacking:
        logger.warning("%s: its font lacks %s, drawn as boxes", path, "".join(lacking))
    return path
