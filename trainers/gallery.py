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
from torch import Tensor

from services.augment.color import color_adapt
from services.augment.tokenadapt import TokenAdapt
from services.errors import InvalidInputError
from services.gallery.sheet import draw_sheet
from services.pictures import ByteArray, Picture, read_picture
from services.plan.draws import Draws
from services.tokens.tokenizer import TokenizerModel, resized
from trainers.picture_config import ViewConfig
from trainers.tokenadapt_compare import alone
from trainers.views import draw_views

logger = logging.getLogger(__name__)

SHOWN = ("hflip", "affine", "crop")
METHODS = ("true", "naive", "TokenAdapt")

Panels = list[tuple[str, Tensor]]


@torch.inference_mode()
def panels(
    images_NCHW: Tensor,
    tokenizer: TokenizerModel,
    adapt: TokenAdapt,
    views: ViewConfig,
    seed: int,
    operations: Sequence[str],
) -> Panels:
    """(title, pictures (N, 3, h, w) in [0, 1]) of each column of the gallery."""
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
    for operation in operations:
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
    tokenizer: TokenizerModel,
    adapt: TokenAdapt,
    path: Path,
    *,
    views: ViewConfig,
    operations: Sequence[str] = SHOWN,
    count: int = 6,
    seed: int = 0,
) -> Path:
    """Write the gallery of a few pictures, one of a class, as a PNG file."""
    spec = tokenizer.spec
    arrays = choose(pictures, count, (spec.image_height, spec.image_width))
    images = torch.from_numpy(np.stack(arrays)).float() / 255
    return draw_sheet(panels(images, tokenizer, adapt, views, seed, operations), path)
