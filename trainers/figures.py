"""A run's figures as its folder keeps them: OUT/metrics.jsonl, a line of strict JSON a record.

A figure that is no finite number (an overflow in a validation) is null there, as JSON knows no NaN
and most readers refuse it, and NaN here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from services.errors import FormatError, NotFoundError
from trainers.checkpoint import METRICS
from trainers.reports import strict_json


def figure_line(step: int, values: Mapping[str, float]) -> str:
    """One line of metrics.jsonl, with its end."""
    return strict_json({"step": step, **values}) + "\n"


def figure_lines(data: bytes, where: str) -> Iterator[tuple[bytes, int, dict[str, float]]]:
    """(line without its end, step, figures) of each line of a metrics.jsonl.

    A last line without an end was cut off when its run was killed: it is passed over.
    where: the file, for what is raised. Raises: FormatError, when it comes to a damaged line.
    """
    *whole, _ = data.split(b"\n")
    for number, line in enumerate(whole, start=1):
        try:
            row = json.loads(line)
            step = row.pop("step")
            if type(step) is not int:
                raise ValueError(f"step {step!r}")
            figures = {name: as_number(value) for name, value in row.items()}
        # RecursionError: brackets without end. AttributeError: JSON, but no object.
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise FormatError(
                f"{where}: line {number} is no line of figures with their step ({line[:40]!r}), the"
                " file is damaged: nothing was changed, and what reads it went no further; delete"
                " that line, which leaves its figures out, or copy the file again"
            ) from error
        yield line, step, figures


def read_curve(run: Path, figure: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one figure in a run's metrics.jsonl, one at least; NaN where it was no
    number.

    Raises: NotFoundError if there is no such file; FormatError if it is damaged, or has no such
    figure.
    """
    file = run / METRICS
    if not file.is_file():
        raise NotFoundError(
            f"there is no {file}, where a run keeps its figures: nothing was read; check the"
            " folder, or let the run begin"
        )
    found = [
        (step, figures[figure])
        for _, step, figures in figure_lines(file.read_bytes(), str(file))
        if figure in figures
    ]
    if not found:
        raise FormatError(
            f"{file} has no {figure}: nothing tells how it went; let the run go on to its end, or,"
            " if it has ended, copy the file again"
        )
    return [step for step, _ in found], [value for _, value in found]


def as_number(value: object) -> float:
    """A figure as JSON holds it, as a number again. Raises: TypeError for what is none."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    try:
        return float(value)
    except OverflowError:
        return math.inf
