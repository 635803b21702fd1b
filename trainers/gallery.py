"""A picture of what the augmentations do to tokens: the paper's figures 3, 5 and C on own pictures.

Each row is one picture; each operation stands there three times, decoded: on the pixels and then
tokenized (what is wanted), naively on the tokens, and through TokenAdapt.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from services.augment.color import color_adapt
from services.augment.tokenadapt import TokenAdapt
from services.errors import InvalidInputError
from services.pictures import ByteArray, Picture, read_picture
from services.plan.draws import Draws
from services.tokens.tokenizer import load_tokenizer, resized
from trainers.picture_config import ViewConfig
from trainers.tokenadapt_step import alone
from trainers.views import draw_views

logger = logging.getLogger(__name__)

OPERATIONS = ("hflip", "affine", "crop")
METHODS = ("true", "naive", "TokenAdapt")

Panels = list[tuple[str, Tensor]]


@torch.inference_mode()
def panels(
    images_NCHW: Tensor, tokenizer_file: Path, tokenadapt_file: Path, views: ViewConfig, seed: int
) -> Panels:
    """(title, pictures (N, 3, h, w) in [0, 1]) of each column of the gallery."""
    tokenizer = load_tokenizer(tokenizer_file).eval()
    adapt = TokenAdapt.from_bytes(tokenadapt_file).eval()
    spec, codebook = tokenizer.spec, tokenizer.codebook
    grid = (spec.grid_height, spec.grid_width)
    out_grid = adapt.config.out_grid
    patch = spec.image_height // spec.grid_height
    size = (out_grid[0] * patch, out_grid[1] * patch)
    after = tokenizer if out_grid == grid else resized(tokenizer, size).eval()

    ids = tokenizer.encode(images_NCHW)
    emb = codebook.embed(ids)
    found: Panels = [("original", images_NCHW), ("decoded\ntokens", tokenizer.decode(ids))]
    draws = Draws(seed, 0, np.arange(len(images_NCHW)))
    for operation in OPERATIONS:
        moved = draw_views(alone(views, operation), draws, grid, len(images_NCHW))
        pixels = moved.apply(images_NCHW, size).clamp(0, 1)
        spread = moved.apply(adapt.convert(emb), adapt.out_map)
        by_method = {
            "true": after.encode(pixels),
            "naive": codebook.quantise(moved.apply(emb, out_grid)),
            "TokenAdapt": adapt.revert(spread).argmax(-1).view(-1, *out_grid),
        }
        found += [(f"{operation}\n{name}", after.decode(by_method[name])) for name in METHODS]
    coloured = codebook.quantise(color_adapt(emb, emb.flip(0)))
    found.append(("ColorAdapt", tokenizer.decode(coloured)))
    return found


def choose(pictures: Sequence[Picture], count: int, size: tuple[int, int]) -> list[ByteArray]:
    """The first readable picture of each class, (3, *size), up to `count` of them.

    Classes are spread over their range.
    """
    by_label: dict[int, list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_label[picture.label].append(picture)
    labels = sorted(by_label)
    picks = np.linspace(0, len(labels) - 1, min(count, len(labels))).round().astype(int)
    found = (_first_readable(by_label[labels[pick]], size) for pick in picks)
    return [array for array in found if array is not None]


def _first_readable(pictures: Sequence[Picture], size: tuple[int, int]) -> ByteArray | None:
    for picture in pictures:
        try:
            return read_picture(picture.path, *size)
        except InvalidInputError as error:
            logger.warning("not in the gallery: %s", error)
    return None


def draw_gallery(
    pictures: Sequence[Picture],
    tokenizer_file: Path,
    tokenadapt_file: Path,
    path: Path,
    *,
    views: ViewConfig,
    count: int = 6,
    seed: int = 0,
) -> Path:
    """Write the gallery of a few pictures, one of a class, as a PNG file."""
    spec = load_tokenizer(tokenizer_file).spec
    arrays = choose(pictures, count, (spec.image_height, spec.image_width))
    images = torch.from_numpy(np.stack(arrays)).float() / 255
    columns = panels(images, tokenizer_file, tokenadapt_file, views, seed)
    rows = len(images)
    figure, axes = plt.subplots(
        rows, len(columns), figsize=(1.05 * len(columns), 1.05 * rows + 0.5), squeeze=False
    )
    for column, (title, shown) in enumerate(columns):
        axes[0][column].set_title(title, fontsize=8)
        for row in range(rows):
            axis = axes[row][column]
            axis.imshow(shown[row].permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
            axis.set_axis_off()
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.93 if rows > 3 else 0.8, 0.06, 0.06)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
