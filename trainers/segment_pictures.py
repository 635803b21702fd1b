"""Pictures of a segmentation: what the model read, masks as they are, and as it predicts them."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")  # a file is drawn, never a window

import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

from services.gallery.sheet import literal
from services.types import IGNORED, FloatArray, MaskArray

_DPI = 130
_NAMED = 24  # classes of a legend
_GOLDEN = 0.618033988749895  # turns that keep hues of neighbouring classes apart
_NONE = (0.12, 0.12, 0.12)  # pixels without a class


def class_colours(count: int) -> FloatArray:
    """(256, 3) in [0, 1]: a colour for each of `count` classes, near black for what has none."""
    table = np.full((IGNORED + 1, 3), _NONE, np.float32)
    for number in range(min(count, IGNORED)):
        lightness = (0.92, 0.68)[number % 2]
        table[number] = colorsys.hsv_to_rgb((0.58 + number * _GOLDEN) % 1, 0.62, lightness)
    return table


def draw_predictions(
    images_N3HW: FloatArray | None,
    truth_NHW: MaskArray,
    prediction_NHW: MaskArray,
    classes: Sequence[str],
) -> bytes:
    """A PNG file: a column a picture, with its decoded tokens, its mask, and the prediction.

    images: in [0, 1]; None leaves that line out. Pixels without a class are dark in the mask.
    """
    colours, count = class_colours(len(classes)), len(truth_NHW)
    lines: list[tuple[str, npt.NDArray[np.float32]]] = []
    if images_N3HW is not None:
        lines.append(("decoded\ntokens", images_N3HW.transpose(0, 2, 3, 1).clip(0, 1)))
    lines += [("truth", colours[truth_NHW]), ("prediction", colours[prediction_NHW])]
    present = np.unique(np.concatenate([truth_NHW, prediction_NHW]))
    named = [int(value) for value in present if value < len(classes)]
    columns = 6
    legend_rows = -(-min(len(named), _NAMED) // columns)
    height = 1.35 * len(lines) + 0.22 * legend_rows + 0.2
    width = max(1.35 * count + 0.75, 6.0)
    figure, axes = plt.subplots(len(lines), count, figsize=(width, height), squeeze=False)
    for line, (title, shown) in zip(axes, lines, strict=True):
        for axis, pixels in zip(line, shown, strict=True):
            axis.imshow(pixels, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(title, fontsize=8)
    patches = [
        Patch(color=colours[value], label=literal(classes[value][:24])) for value in named[:_NAMED]
    ]
    figure.legend(handles=patches, loc="lower center", ncol=columns, fontsize=7, frameon=False)
    bottom = (0.22 * legend_rows + 0.12) / height
    figure.subplots_adjust(0.55 / width, bottom, 0.995, 0.985, 0.04, 0.04)
    sink = io.BytesIO()
    figure.savefig(sink, dpi=_DPI, format="png")
    plt.close(figure)
    return sink.getvalue()
