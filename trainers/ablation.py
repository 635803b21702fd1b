"""The ablation of the paper's Table 7: `python trainers/ablation.py --help`.

SeiT, with ColorAdapt, with TokenAdapt, with both; each from scratch and from MTM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from trainers.charts import COLOURS, save_figure
from trainers.data_config import require
from trainers.estimate import in_seeds
from trainers.reports import as_text
from trainers.sweep import Data, Setting, SweepConfig
from trainers.sweep_main import main
from trainers.sweep_report import Claim, Results, order_table, top1, write_json

_VARIANTS = {  # (TokenAdapt, ColorAdapt)
    (False, False): "SeiT",
    (False, True): "+ ColorAdapt",
    (True, False): "+ TokenAdapt",
    (True, True): "+ both",
}
_PAPER = dict(zip(_VARIANTS.values(), (77.3, 78.3, 80.4, 81.4), strict=True))
_TRAINING = {False: "from scratch", True: "from MTM"}


@dataclass(frozen=True)
class AblationConfig(SweepConfig):
    """The four combinations of ColorAdapt and TokenAdapt, from scratch and from MTM."""

    pretraining: Literal["both", "with", "without"] = "both"
    """Whether classifiers start from MTM."""
    share: float = 1.0
    """Share of the training rows that is trained on, another one for each seed, for as many steps
    as all of them would take; above 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.share <= 1, "share", self.share, "a share above 0 to 1")


def settings(config: AblationConfig, data: Data) -> list[Setting]:
    """Rows of the table, all on equally many rows of the training split."""
    starts = {"both": (False, True), "with": (True,), "without": (False,)}[config.pretraining]
    rows = data.part(config.share)
    require(rows >= data.classes, "share", config.share, "a row of each class or more")
    return [
        Setting(mtm=mtm, tokenadapt=adapt, coloradapt=color, rows=rows)
        for mtm, (adapt, color) in product(starts, _VARIANTS)
    ]


def claims(results: Results) -> list[Claim]:
    """SeiT < one of them < both, and MTM more than none, as far as they were computed."""
    by_parts = {(s.mtm, s.tokenadapt, s.coloradapt): s for s in results}
    found = []
    for mtm in sorted({setting.mtm for setting in results}):
        start = _TRAINING[mtm]
        plain, color, adapt, both = (by_parts[mtm, *parts] for parts in _VARIANTS)
        found += [
            Claim(f"+ ColorAdapt than SeiT, {start}", color, plain),
            Claim(f"+ TokenAdapt than SeiT, {start}", adapt, plain),
            Claim(f"+ both than + ColorAdapt, {start}", both, color),
            Claim(f"+ both than + TokenAdapt, {start}", both, adapt),
            Claim(f"+ both than SeiT, {start}", both, plain),
        ]
    for parts, label in _VARIANTS.items():
        if {(False, *parts), (True, *parts)} <= by_parts.keys():
            without, having = by_parts[False, *parts], by_parts[True, *parts]
            found.append(Claim(f"MTM than scratch, {label}", having, without))
    return found


def report(config: AblationConfig, data: Data, results: Results) -> tuple[str, Sequence[Path]]:
    """Table, JSON and chart."""
    rows = data.part(config.share)
    title = f"top-1 (%) on {rows:,} rows of {data.classes} classes, {in_seeds(config.seeds)}"
    starts = sorted({setting.mtm for setting in results})
    table = Table("", *(_TRAINING[mtm] for mtm in starts), "paper (ViT-S, IN-100)", title=title)
    for (adapt, color), label in _VARIANTS.items():
        cells = [str(top1(results, Setting(mtm, adapt, color, rows))) for mtm in starts]
        table.add_row(label, *cells, f"{_PAPER[label]}")
    order = claims(results)
    files = [write_json("ablation", config, data, results, order), _draw(config, data, results)]
    return as_text(table, order_table(results, order)), files


def _draw(config: AblationConfig, data: Data, results: Results) -> Path:
    figure = Figure(figsize=(6.4, 3.6))
    axis: Axes = figure.subplots()
    starts = sorted({setting.mtm for setting in results})
    width = 0.8 / len(starts)
    for number, (mtm, colour) in enumerate(zip(starts, COLOURS, strict=False)):
        for place, (adapt, color) in enumerate(_VARIANTS):
            setting = Setting(mtm, adapt, color, data.part(config.share))
            found, x = top1(results, setting), place + (number - (len(starts) - 1) / 2) * width
            axis.bar(
                x,
                100 * found.mean,
                0.92 * width,
                yerr=100 * found.error,
                color=colour,
                alpha=0.75,
                capsize=3,
                label=_TRAINING[mtm] if place == 0 else None,
            )
            values = [100 * point.top1 for point in results[setting]]
            axis.plot([x] * len(values), values, "o", color="black", markersize=2.5, alpha=0.5)
    low = min(100 * point.top1 for points in results.values() for point in points)
    axis.set_ylim(bottom=max(0.0, low - 4), top=min(100.0, axis.get_ylim()[1] + 2))
    axis.set_xticks(range(len(_VARIANTS)), list(_VARIANTS.values()))
    axis.set_ylabel("top-1 (%), axis cut")
    axis.set_title(f"{in_seeds(config.seeds)} (dots), mean ± standard error", fontsize=10)
    axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    return save_figure(figure, config.out / "ablation.png")


if __name__ == "__main__":
    raise SystemExit(main(AblationConfig, settings, report, __doc__ or ""))
