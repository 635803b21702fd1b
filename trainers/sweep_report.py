"""What came out of a sweep: means with standard errors, the order between settings, JSON, charts.

Two settings are compared seed by seed: the same seed has the same order of the data, the same
subset and the same initial weights, so most of what differs between seeds drops out.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from services.shards.store import open_store
from trainers.estimate import Estimate, estimate
from trainers.reports import machine, strict_json
from trainers.sweep import Data, Point, Setting, SweepConfig, described

Results = Mapping[Setting, Sequence[Point]]


@dataclass(frozen=True)
class Claim:
    """That one setting reaches more than another. text: as a table says it."""

    text: str
    better: Setting
    worse: Setting

    def judge(self, results: Results) -> tuple[Estimate, str]:
        """(difference of top-1, pairing seeds; what was found: "holds", "does not hold", "within
        the noise", or "open" with one seed, whose noise is not known)."""
        pairs = zip(results[self.better], results[self.worse], strict=True)
        found = estimate([a.top1 - b.top1 for a, b in pairs])
        if math.isnan(found.error):
            return found, "open"
        if not found.clear:
            return found, "within the noise"
        return found, "holds" if found.mean > 0 else "does not hold"


def top1(results: Results, setting: Setting) -> Estimate:
    """Top-1 of a setting over its seeds."""
    return estimate([point.top1 for point in results[setting]])


def storage_bytes(data: Data, rows: int) -> int:
    """What so many rows of the training split take on storage."""
    return round(data.bytes * rows / data.rows)


def write_json(
    name: str, config: SweepConfig, data: Data, results: Results, claims: Sequence[Claim]
) -> Path:
    """OUT/NAME.json: every point, and what follows; no path of this machine in it."""
    judged = [(claim, *claim.judge(results)) for claim in claims]
    content = {
        "name": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "timm")},
        },
        "data": {"pictures": config.pictures or "a dataset that stood", **described(data)},
        "recipes": {
            part: getattr(config, part)
            for part in ("mtm", "finetune", "scratch", "mtm_options", "classify_options")
        },
        "coloradapt": config.coloradapt,
        "settings": [_setting(data, setting, points) for setting, points in results.items()],
        "order": [
            {
                "claim": c.text,
                "difference": d.mean,
                "standard_error": d.about()["standard_error"],
                "found": word,
            }
            for c, d, word in judged
        ],
    }
    text = strict_json(content, indent=2) + "\n"
    open_store(str(config.out.resolve())).write(f"{name}.json", text.encode())
    return config.out / f"{name}.json"


def _setting(data: Data, setting: Setting, points: Sequence[Point]) -> dict[str, Any]:
    found = estimate([point.top1 for point in points])
    return {
        **asdict(setting),
        "storage_bytes": storage_bytes(data, setting.rows),
        "top1_mean": found.mean,
        "top1_standard_error": found.error,
        "points": [asdict(point) for point in points],
    }


def order_table(results: Results, claims: Sequence[Claim]) -> Table:
    """The order that is hoped for, and what was found."""
    table = Table("more than", "difference, points", "found", title="order, seeds paired, at 95 %")
    for claim in claims:
        difference, word = claim.judge(results)
        sign = "+" if difference.mean >= 0 else ""
        table.add_row(claim.text, f"{sign}{difference}", word)
    return table
