"""Corrupted pictures, and folders of shifted domains, as the paper's Table 5 has them.

Gaussian noise and Gaussian blur come in the five severities of ImageNet-C (Hendrycks and
Dietterich, 2019), which are meant for pictures of 224 pixels: noise does not depend on the size,
the blur's width is scaled to the side at hand. As there, results are cut to 8 bits.

Letters: N rows, h x w pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from services.errors import FormatError, InvalidInputError, NotFoundError
from services.plan.draws import Draws, hash_key
from services.types import IntArray
from trainers.evaluation import Change, ClassMap

SEVERITIES = (1, 2, 3, 4, 5)
NOISE_STD = (0.08, 0.12, 0.18, 0.26, 0.38)
"""Of pixels in [0, 1], by severity."""
BLUR_SIGMA = (1.0, 2.0, 3.0, 4.0, 6.0)
"""In pixels of a picture of `BLUR_SIDE`, by severity."""
BLUR_SIDE = 224
_TRUNCATE = 4.0  # standard deviations at which the blur's kernel ends, as scikit-image's does

Corruption = Literal["gaussian_noise", "gaussian_blur"]
CORRUPTIONS: tuple[Corruption, ...] = ("gaussian_noise", "gaussian_blur")


def corruption(kind: Corruption, severity: int, seed: int = 0) -> Change:
    """One corruption. severity: 1 to 5. seed: of the noise, which is keyed by row.

    Raises: InvalidInputError for another severity.
    """
    if severity not in SEVERITIES:
        raise InvalidInputError(f"severity {severity} is not one of 1 to 5")
    if kind == "gaussian_noise":
        key = hash_key("robustness", kind, severity, seed)
        return partial(_noisy, std=NOISE_STD[severity - 1], seed=key)
    return partial(_blurred, sigma=BLUR_SIGMA[severity - 1])


def _noisy(images: Tensor, rows: IntArray, *, std: float, seed: int) -> Tensor:
    size = images[0].numel() if len(images) else 0
    noise = torch.from_numpy(Draws(seed, 0, rows).normal("noise", size)).view_as(images)
    return _eight_bits(images + std * noise)


def _blurred(images: Tensor, rows: IntArray, *, sigma: float) -> Tensor:
    """sigma: pixels of a side of `BLUR_SIDE`. Beyond its edge a picture goes on as it ends."""
    blurred = images
    for axis in (2, 3):
        blurred = _blurred_along(blurred, axis, sigma * images.shape[axis] / BLUR_SIDE)
    return _eight_bits(blurred)


def _blurred_along(images: Tensor, axis: int, sigma: float) -> Tensor:
    radius = int(_TRUNCATE * sigma + 0.5)
    if not radius or not len(images):
        return images
    place = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (place / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(images.dtype)
    along = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
    pad = (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0)
    channels = images.shape[1]
    padded = F.pad(images, pad, mode="replicate")
    weight = kernel.view(along).expand(channels, *(-1, -1, -1)).contiguous()
    return F.conv2d(padded, weight, groups=channels)


def _eight_bits(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).floor() / 255


@dataclass(frozen=True)
class Layout:
    """How a set of shifted pictures is scored.

    among_accepted: only its own classes may be answered. border: pixels that frame its files.
    """

    title: str
    among_accepted: bool
    border: int


LAYOUTS: Mapping[str, Layout] = {
    # 200 of ImageNet's classes, in folders named as ImageNet's own.
    "imagenet_r": Layout("ImageNet-R", among_accepted=True, border=0),
    "sketch": Layout("Sketch", among_accepted=False, border=0),
    # 113 of its 313 classes overlap ImageNet's, some with several; files carry a red frame.
    "objectnet": Layout("ObjectNet", among_accepted=False, border=2),
}
"""By the name of the option that gives the folder."""

PAPER: Mapping[str, tuple[float, float]] = {
    "clean": (74.0, 75.5),
    "gaussian_noise": (50.7, 58.6),
    "gaussian_blur": (62.6, 66.8),
    "imagenet_r": (25.5, 30.2),
    "sketch": (22.6, 27.7),
    "objectnet": (15.7, 18.3),
}
"""Top-1 in percent of SeiT and of SeiT++ without MTM on ImageNet (Table 5)."""


def read_class_map(path: str | Path) -> ClassMap:
    """A JSON file {"class of the data": "class of the model", or a list of them}.

    Raises: NotFoundError, FormatError.
    """
    file = Path(path)
    if not file.is_file():
        raise NotFoundError(f"there is no class map {file}: give a JSON file, or none")
    try:
        found = TypeAdapter(dict[str, str | list[str]]).validate_json(file.read_bytes())
    except ValidationError as error:
        raise FormatError(
            f'{file} is no class map ({error}): it should be JSON such as {{"airplane":'
            ' ["n02690373", "n04552348"]}, from class folders to classes of the model'
        ) from error
    return {name: [right] if isinstance(right, str) else right for name, right in found.items()}
