"""What all benchmarks share: flags, timing, and figures as JSON and as a table.

A benchmark is one script for one claim:

    options = harness.options(__doc__, harness.Options)
    report = harness.Report("plan_seek", options, packages=("numpy",))
    report.add("seek_seconds", harness.median_seconds(seek), "s", at_most=0.1)
    report.finish()
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, TypeVar

import tyro
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Options:
    """Flags of every benchmark; a benchmark with more flags extends this class."""

    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """End within a minute, on less data or with fewer repeats."""
    json: Path | None = None
    """Write the figures to this file too."""


Kind = TypeVar("Kind", bound=Options)


def options(doc: str | None, kind: type[Kind]) -> Kind:
    """The command line as `kind` (`Options`, or a class that extends it), described by `doc`."""
    return tyro.cli(kind, description=doc)


def median_seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """Median wall time of `repeats` runs."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def machine() -> dict[str, object]:
    """What the figures were measured on: nothing that names a person or a host."""
    about: dict[str, object] = {
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),  # of the minute before: others at work spoil speeds
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    torch = sys.modules.get("torch")  # a benchmark that uses an accelerator has imported it
    if torch is not None and torch.cuda.is_available():
        about["accelerator"] = torch.cuda.get_device_name()
    return about


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


class Report:
    """Figures of one benchmark: collected, then shown and written."""

    def __init__(self, name: str, options: Options, packages: Sequence[str] = ()) -> None:
        self._options = options
        self._content: dict[str, object] = {
            "name": name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": {
                "python": platform.python_version(),
                **{package: version(package) for package in packages},
            },
        }
        self._figures: dict[str, dict[str, object]] = {}
        self._targets: dict[str, str] = {}
        self._notes: list[str] = []
        if options.quick:
            self.note("Quick run, on less data or with fewer repeats: not figures to quote.")

    def add(
        self,
        key: str,
        value: float,
        unit: str,
        *,
        peer: float | None = None,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """One figure; one that is no finite number is null. `peer`: the same measured on what it is
        compared with, in this run.

        `at_most` or `at_least` is the target; without one, `target` and `met` are null.
        """
        met = None
        if at_most is not None:
            met = value <= at_most
            self._targets[key] = f"≤ {at_most:g}"
        if at_least is not None:
            met = value >= at_least
            self._targets[key] = f"≥ {at_least:g}"
        target = at_least if at_most is None else at_most
        figure = {
            **{"value": _finite(value), "unit": unit, "peer": _finite(peer)},
            **{"target": target, "met": met},
        }
        self._figures[key] = figure

    def note(self, text: str) -> None:
        """What a reader must know to judge the figures."""
        self._notes.append(text)

    def finish(self) -> None:
        """Show the table, and write the JSON file if one was asked for."""
        content = {**self._content, "figures": self._figures, "notes": self._notes}
        console = Console()
        console.print(self._table())
        for note in self._notes:
            console.print(f"- {note}")
        if self._options.json is not None:
            self._options.json.parent.mkdir(parents=True, exist_ok=True)
            self._options.json.write_text(json.dumps(content, indent=2) + "\n")

    def _table(self) -> Table:
        quick = " (quick)" if self._options.quick else ""
        table = Table(title=f"{self._content['name']}{quick}")
        table.add_column("figure")
        for column in ("value", "unit", "peer", "target", "met"):
            table.add_column(column, justify="right")
        for key, figure in self._figures.items():
            peer, met = figure["peer"], figure["met"]
            table.add_row(
                key,
                _shown(figure["value"]),
                str(figure["unit"]),
                _shown(peer),
                self._targets.get(key, ""),
                "" if met is None else ("yes" if met else "NO"),
            )
        return table


def _finite(value: float | None) -> float | None:
    """None for what is no finite number, which JSON could not hold."""
    return value if value is not None and math.isfinite(value) else None


def _shown(value: object) -> str:
    return "" if value is None else f"{value:.4g}"
