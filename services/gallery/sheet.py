"""A sheet of small pictures: a row a sample, a column an operation, written as a PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a file is drawn, never a window

from matplotlib import pyplot as plt
from torch import Tensor

from services.errors import InvalidInputError
from services.folders import replaced

Columns = Sequence[tuple[str, Tensor]]
"""(title, pictures (N, 3, h, w) in [0, 1]) of each column; sizes may differ between columns."""

_DPI = 130
_INCHES = 1.05, 1.6  # least and most that a panel is wide
_TITLE_INCHES = 0.55


def literal(name: str) -> str:
    """A name that somebody else chose, as a picture shows it: dollars would make it a formula."""
    return name.replace("$", r"\$")


def draw_sheet(columns: Columns, path: Path, names: Sequence[str] = ()) -> Path:
    """Write the sheet, whole or not at all; the path again.

    names: of the rows, shown at their left.
    Raises: InvalidInputError where there is nothing to draw; StoreError where it cannot be written.
    """
    if not columns or not len(columns[0][1]):
        raise InvalidInputError("there is no picture to draw: name at least one row")
    rows = len(columns[0][1])
    pixels = max(pictures.shape[-1] for _, pictures in columns)
    inches = min(max(pixels / _DPI, _INCHES[0]), _INCHES[1])
    width, height = inches * len(columns), inches * rows + _TITLE_INCHES
    figure, axes = plt.subplots(rows, len(columns), figsize=(width, height), squeeze=False)
    for column, (title, pictures) in enumerate(columns):
        axes[0][column].set_title(literal(title), fontsize=8)
        for row in range(rows):
            axis = axes[row][column]
            shown = pictures[row].float().permute(1, 2, 0).clamp(0, 1).cpu().numpy()
            axis.imshow(shown, interpolation="nearest")
            axis.set_axis_off()
    left = 0.3 / width if names else 0.0
    for row, name in enumerate(names):
        axes[row][0].text(
            -0.04, 0.5, literal(name), transform=axes[row][0].transAxes, rotation=90, fontsize=7,
            ha="right", va="center",
        )  # fmt: skip
    figure.subplots_adjust(left + 0.003, 0.003, 0.997, 1 - _TITLE_INCHES / height, 0.05, 0.05)
    try:
        with replaced(path) as part:
            figure.savefig(part, dpi=_DPI, format="png")
    finally:
        plt.close(figure)
    return path
