"""Runs that differ in their seed alone, and what they say together."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from trainers.checkpoint import MODEL

_SURE = 0.95
"""Share of differences by chance alone that are not called one."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds. error: its standard error, NaN with one seed. count: seeds.

    Both are NaN where a seed's value is: a loss that overflowed.
    """

    mean: float
    error: float
    count: int

    @property
    def clear(self) -> bool:
        """Whether the mean differs from 0, two-sided at 95 %: by more standard errors than
        Student's quantile, 12.7 of two seeds, 4.3 of three, 2.8 of five. Never with one seed."""
        if self.count < 2:
            return False
        return abs(self.mean) > float(stdtrit(self.count - 1, 0.5 + _SURE / 2)) * self.error

    def __str__(self) -> str:
        """In percent, as tables show it."""
        spread = "" if math.isnan(self.error) else f" ± {100 * self.error:.1f}"
        return f"{100 * self.mean:.1f}{spread}"

    def about(self) -> dict[str, float]:
        """For `strict_json`."""
        return {"mean": self.mean, "standard_error": self.error}


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error (sample deviation / sqrt n) of one value a seed."""
    count = len(values)
    if not all(map(math.isfinite, values)):
        return Estimate(math.nan, math.nan, count)
    error = statistics.stdev(values) / math.sqrt(count) if count > 1 else math.nan
    return Estimate(statistics.fmean(values), error, count)


def in_seeds(count: int) -> str:
    """How many seeds, in words for a title."""
    return f"{count} seed{'s' * (count != 1)}"


def names_of(urls: Sequence[str]) -> list[str]:
    """What runs are called, no two alike: the last part of where they lie, numbered where it
    repeats. A run's exported file is called as its folder."""
    folders = (url.rstrip("/").removesuffix(f"/{MODEL}") for url in urls)
    last = [folder.rpartition("/")[2].removesuffix(".safetensors") for folder in folders]
    numbered = [f"{name}-{at}" for at, name in enumerate(last, start=1)]
    found = [n if last.count(n) == 1 else m for n, m in zip(last, numbered, strict=True)]
    return found if len(set(found)) == len(found) else numbered


def by_seed(names: Sequence[str]) -> dict[str, list[int]]:
    """Places of the names that differ in the seed at their end alone ("classify-seed3", as sweeps
    name their runs), by what they share. The only one of its kind keeps its whole name."""
    found: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        shared = re.sub(r"-seed\d+$", "", name)
        alone = shared == name or shared not in names
        found.setdefault(shared if alone else f"{shared}-seed*", []).append(place)
    return {name if len(places) > 1 else names[places[0]]: places for name, places in found.items()}


def spread_of(arms: Mapping[str, Sequence[int]]) -> str:
    """What the title of a table says of its figures, where a line stands for several runs."""
    several = any(len(places) > 1 for places in arms.values())
    return "; mean ± standard error over seeds" if several else ""
