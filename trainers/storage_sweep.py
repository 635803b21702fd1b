"""Accuracy by storage, the paper's Table 2: `python trainers/storage_sweep.py --help`.

SeiT, with MTM, SeiT++ without MTM, and SeiT++, each on class-balanced parts of the training rows;
the number of steps stays that of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from trainers.charts import COLOURS, save_figure
from trainers.data_config import require
from trainers.estimate import in_seeds
from trainers.reports import as_text
from trainers.sweep import Data, Setting, SweepConfig
from trainers.sweep_main import main
from trainers.sweep_report import (
    Claim,
    Results,
    order_table,
    storage_bytes,
    top1,
    write_json,
)

_METHODS = {  # (MTM, TokenAdapt and ColorAdapt)
    (False, False): "SeiT",
    (True, False): "SeiT + MTM",
    (False, True): "SeiT++ without MTM",
    (True, True): "SeiT++",
}


@dataclass(frozen=True)
class StorageConfig(SweepConfig):
    """Four methods on several parts of the training rows."""

    shares: tuple[float, ...] = (1.0, 0.8, 0.6, 0.4, 0.2)
    """Parts of the training rows, and so of their storage, as shares of all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        valid = bool(self.shares) and all(0 < share <= 1 for share in self.shares)
        distinct = len(set(self.shares)) == len(self.shares)
        require(valid and distinct, "shares", self.shares, "different shares, above 0 to 1")


def settings(config: StorageConfig, data: Data) -> list[Setting]:
    """Rows of the table, the largest part first."""
    return [
        Setting(mtm=mtm, tokenadapt=ours, coloradapt=ours, rows=rows)
        for rows in _rows(config, data)
        for mtm, ours in _METHODS
    ]


def _rows(config: StorageConfig, data: Data) -> list[int]:
    found = [data.part(share) for share in sorted(config.shares, reverse=True)]
    require(len(set(found)) == len(found), "shares", config.shares, f"apart on {data.rows} rows")
    require(found[-1] >= data.classes, "shares", config.shares, "at least a row of each class")
    return found


def claims(results: Results) -> list[Claim]:
    """At each storage: MTM helps, our augmentations help, and both help most."""
    found = []
    for rows in dict.fromkeys(setting.rows for setting in results):
        by_method = {
            label: Setting(mtm, ours, ours, rows) for (mtm, ours), label in _METHODS.items()
        }
        plain, mtm, ours, both = by_method.values()
        for better, worse in ((mtm, plain), (ours, plain), (both, mtm), (both, ours)):
            names = {setting: label for label, setting in by_method.items()}
            text = f"{names[better]} than {names[worse]}, {rows:,} rows"
            found.append(Claim(text, better, worse))
    return found


def report(config: StorageConfig, data: Data, results: Results) -> tuple[str, Sequence[Path]]:
    """Table, JSON and chart."""
    parts = _rows(config, data)
    title = f"top-1 (%) by rows and their storage, {data.classes} classes, {in_seeds(config.seeds)}"
    columns = [f"{rows:,} rows\n{storage_bytes(data, rows) / 1e3:,.1f} KB" for rows in parts]
    table = Table("", *columns, title=title)
    for (mtm, ours), label in _METHODS.items():
        cells = [str(top1(results, Setting(mtm, ours, ours, rows))) for rows in parts]
        table.add_row(label, *cells)
    order = claims(results)
    files = [
        write_json("storage_sweep", config, data, results, order),
        _draw(config, data, results, parts),
    ]
    return as_text(table, order_table(results, order)), files


def _draw(config: StorageConfig, data: Data, results: Results, parts: Sequence[int]) -> Path:
    figure = Figure(figsize=(6.0, 3.8))
    axis: Axes = figure.subplots()
    kilobytes = [storage_bytes(data, rows) / 1e3 for rows in parts]
    for colour, ((mtm, ours), label) in zip(COLOURS, _METHODS.items(), strict=False):
        found = [top1(results, Setting(mtm, ours, ours, rows)) for rows in parts]
        axis.errorbar(
            kilobytes,
            [100 * each.mean for each in found],
            yerr=[100 * each.error for each in found],
            color=colour,
            marker="o",
            markersize=4,
            capsize=3,
            label=label,
        )
    axis.set_xlabel("storage of the training rows (KB)")
    axis.set_ylabel("top-1 (%)")
    spread = "mean ± standard error of " if config.seeds > 1 else ""
    axis.set_title(f"{spread}{in_seeds(config.seeds)}", fontsize=10)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    return save_figure(figure, config.out / "storage_sweep.png")


if __name__ == "__main__":
    raise SystemExit(main(StorageConfig, settings, report, __doc__ or ""))
