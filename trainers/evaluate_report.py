"""What an evaluation leaves: tables, report.json, and pictures of confusions and of robustness."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from services.folders import replaced
from services.gallery.sheet import literal
from trainers.charts import COLOURS, save_figure
from trainers.estimate import Estimate, by_seed, estimate, spread_of
from trainers.evaluation import Tally

WORST = 10
"""Classes that the table lists; report.json has them all."""
_NAMED = 40  # classes up to which the confusion picture names each
_NUMBERED = 20  # ... and up to which each cell says its count


Means = Mapping[str, Sequence[tuple[float, float]]]
Paper = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Condition:
    """One state of the pictures, and a tally of each model.

    kind: "clean", a corruption (of severity 1 to 5), or a layout of shifted pictures.
    """

    title: str
    kind: str
    severity: int
    tallies: Sequence[Tally]


def shares(tally: Tally) -> dict[str, Any]:
    """The figures of a tally: rows, top-1, top-5."""
    top1, top5 = tally.share(tally.top1), tally.share(tally.top5)
    return {"rows": tally.rows, "top1": top1, "top5": top5}


def by_class(tally: Tally) -> list[dict[str, Any]]:
    """The same of each class of the data; no share where it has no rows."""
    rows = tally.answers.sum(1)
    return [
        {
            "class": name,
            "rows": int(rows[at]),
            "top1": float(tally.top1[at] / rows[at]) if rows[at] else None,
            "top5": float(tally.top5[at] / rows[at]) if rows[at] else None,
        }
        for at, name in enumerate(tally.classes)
    ]


def confusion(tally: Tally) -> dict[str, Any]:
    """What was answered to what: entry i is `rows[i]` rows of the data's class `true[i]`.

    true: numbers of the data's classes. answered: numbers of `classes`, the model's.
    """
    true, answered = np.nonzero(tally.answers)
    return {
        "classes": list(tally.known),
        "true": true.tolist(),
        "answered": answered.tolist(),
        "rows": tally.answers[true, answered].tolist(),
    }


def accuracy_tables(names: Sequence[str], tallies: Sequence[Tally]) -> list[Table]:
    """Top-1 and top-5 of each model, and the classes that each gets least right."""
    total = Table("model", "rows", "top-1", "top-5", title="accuracy")
    for name, tally in zip(names, tallies, strict=True):
        top1, top5 = tally.share(tally.top1), tally.share(tally.top5)
        total.add_row(name, f"{tally.rows:,}", f"{top1:.2%}", f"{top5:.2%}")
    return [total, *(_worst(name, tally) for name, tally in zip(names, tallies, strict=True))]


def _worst(name: str, tally: Tally) -> Table:
    rows = tally.answers.sum(1)
    share = np.where(rows > 0, tally.top1 / np.maximum(rows, 1), np.inf)
    title = f"{name}: the classes least often right"
    table = Table("class", "rows", "top-1", "top-5", "mostly taken for", title=title)
    for at in np.argsort(share, kind="stable")[:WORST].tolist():
        if not rows[at]:
            break
        wrong = np.where(tally.right[at], 0, tally.answers[at])  # another class may share the name
        taken = int(wrong.argmax())
        mostly = f"{tally.known[taken]} ({wrong[taken]})" if wrong[taken] else ""
        table.add_row(
            tally.classes[at],
            f"{rows[at]:,}",
            f"{share[at]:.1%}",
            f"{tally.top5[at] / rows[at]:.1%}",
            mostly,
        )
    return table


def draw_confusion(name: str, tally: Tally, path: Path) -> Path:
    """Which class is taken for which, as shares of a class's rows."""
    rows = tally.answers.sum(1, keepdims=True)
    share = tally.answers / np.maximum(rows, 1)  # (G, C)
    groups, known = share.shape
    side = float(np.clip(0.32 * max(groups, known), 4.2, 14.0))
    figure = Figure(figsize=(side + 1.6, side + 0.8))
    axis: Axes = figure.subplots()
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axis, fraction=0.046, pad=0.04, label="share of the class's rows")
    if max(groups, known) <= _NAMED:
        axis.set_xticks(range(known), [_short(n) for n in tally.known], rotation=60, ha="right")
        axis.set_yticks(range(groups), [_short(n) for n in tally.classes])
    if max(groups, known) <= _NUMBERED:
        for g, c in zip(*np.nonzero(tally.answers), strict=True):
            colour = "white" if share[g, c] > 0.5 else "black"
            text = str(tally.answers[g, c])
            axis.text(c, g, text, ha="center", va="center", fontsize=7, color=colour)
    axis.set_xlabel("answered")
    axis.set_ylabel("true class")
    title = f"{name}: {tally.share(tally.top1):.1%} top-1 on {tally.rows:,} rows"
    axis.set_title(literal("\n".join(textwrap.wrap(title, 60))), fontsize=10)
    return save_figure(figure, path)


def _short(name: str) -> str:
    return literal(textwrap.shorten(name, 18, placeholder="…") if len(name) > 18 else name)


def robustness_table(
    names: Sequence[str], conditions: Sequence[Condition], means: Means, paper: Paper
) -> Table:
    """One line a condition, a mean after the severities of each corruption; one column for runs
    that differ in their seed.

    paper: by kind, top-1 in percent of SeiT and of SeiT++ without MTM on ImageNet.
    """
    arms = by_seed(names)
    table = Table("pictures", "rows", title=f"robustness: top-1 (top-5), %{spread_of(arms)}")
    for name in arms:
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("paper, ImageNet:\nSeiT, SeiT++ w/o MTM", justify="right")

    def line(title: str, rows: int, shares: Sequence[tuple[float, float]], kind: str) -> None:
        told = "{:.1f}, {:.1f}".format(*paper[kind]) if kind in paper else ""
        both = ([estimate([shares[m][k] for m in arm]) for k in (0, 1)] for arm in arms.values())
        table.add_row(title, f"{rows:,}", *(f"{one} ({five})" for one, five in both), told)

    for kind, mean in means.items():
        alike = [condition for condition in conditions if condition.kind == kind]
        rows = alike[0].tallies[0].rows
        if len(alike) == 1:
            line(alike[0].title, rows, mean, kind)
            continue
        for one in alike:
            line(one.title, rows, [(t.share(t.top1), t.share(t.top5)) for t in one.tallies], "")
        line(f"{kind.replace('_', ' ')}, mean", rows, mean, kind)
        table.add_section()
    return table


def robustness_means(conditions: Sequence[Condition], models: int) -> Means:
    """(top-1, top-5) of each model by kind of condition, the mean over its severities."""
    found: dict[str, list[tuple[float, float]]] = {}
    for kind in dict.fromkeys(condition.kind for condition in conditions):
        alike = [condition.tallies for condition in conditions if condition.kind == kind]
        found[kind] = [
            (
                float(np.mean([t[m].share(t[m].top1) for t in alike])),
                float(np.mean([t[m].share(t[m].top5) for t in alike])),
            )
            for m in range(models)
        ]
    return found


def draw_robustness(
    names: Sequence[str],
    conditions: Sequence[Condition],
    samples: Mapping[str, Sequence[Tensor]],
    path: Path,
) -> Path:
    """Top-1 by severity, and below it what the pictures look like. Runs that differ in their seed
    are one line, their mean, with its standard error.

    samples: for each kind of corruption one picture, (3, h, w) in [0, 1], at severities 0 to 5.
    """
    arms = by_seed(names)

    def top1(condition: Condition, arm: Sequence[int]) -> Estimate:
        return estimate([condition.tallies[m].share(condition.tallies[m].top1) for m in arm])

    shifted = [c for c in conditions if c.kind not in samples and c.kind != "clean"]
    figure = Figure(figsize=(4.3 * (len(samples) + bool(shifted)), 4.6))
    parts: Any = figure.subfigures(2, 1, height_ratios=(3.2, 1.1))
    charts, pictures = parts
    axes = charts.subplots(1, len(samples) + bool(shifted), sharey=True, squeeze=False)[0]
    clean = next(condition for condition in conditions if condition.kind == "clean")
    for axis, kind in zip(axes, samples, strict=False):
        steps = [clean, *(c for c in conditions if c.kind == kind)]
        for colour, (name, arm) in zip(cycle(COLOURS), arms.items(), strict=False):
            found = [top1(c, arm) for c in steps]
            axis.errorbar(
                [c.severity for c in steps],
                [100 * each.mean for each in found],
                [100 * each.error for each in found] if len(arm) > 1 else None,
                **{"color": colour, "fmt": "o-", "markersize": 4, "capsize": 2},
                label=literal(name),
            )
        axis.set_title(kind.replace("_", " "), fontsize=10)
        axis.set_xlabel("severity (0: clean)")
    if shifted:
        width = 0.8 / len(arms)
        for colour, (at, (name, arm)) in zip(cycle(COLOURS), enumerate(arms.items()), strict=False):
            values = [100 * top1(c, arm).mean for c in shifted]
            place = np.arange(len(shifted)) + (at - (len(arms) - 1) / 2) * width
            axes[-1].bar(place, values, 0.92 * width, color=colour, label=literal(name))
        axes[-1].set_xticks(range(len(shifted)), [c.title for c in shifted])
        axes[-1].set_title("shifted pictures", fontsize=10)
    axes[0].set_ylabel("top-1 (%)")
    axes[0].legend(frameon=False, fontsize=8)
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    count = sum(len(shown) for shown in samples.values())
    places = pictures.subplots(1, count, squeeze=False)[0]
    shown = [(kind, at, one) for kind, row in samples.items() for at, one in enumerate(row)]
    for axis, (kind, at, one) in zip(places, shown, strict=True):
        axis.imshow(one.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(f"{kind.split('_')[-1]} {at}", fontsize=7)
        axis.set_axis_off()
    charts.subplots_adjust(bottom=0.17, top=0.9, left=0.07, right=0.98)
    pictures.subplots_adjust(bottom=0.02, top=0.85, left=0.07, right=0.98, wspace=0.06)
    with replaced(path) as part:
        figure.savefig(part, dpi=130, format="png")
    return path
