"""One augmentation A, drawn for each row, and applied alike to pictures and to maps of features.

TokenAdapt learns from pairs: the same A acts on the pixels and on the map that f makes of their
tokens (paper, section 3.3.2). A box is drawn in whole cells of a coarse grid, so that it is whole
at every resolution that A is applied at.

Shape letters: N rows, D channels of any map, H and W its sides, h and w sides of the result.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from services.augment.boxes import RESIZED_DRAWS, centre_boxes, resized_boxes
from services.augment.choices import choose_mix, choose_warp
from services.augment.crop import resize_crop
from services.augment.geometry import affine_matrices, warp
from services.augment.mix import mixup
from services.errors import InvalidInputError
from services.plan.draws import Draws
from services.tokens.devices import on_device
from trainers.picture_config import ViewConfig


@dataclass(frozen=True)
class Views:
    """A of each row: flip and affine, then crop and resize, then Mixup.

    matrices: (N, 2, 3) float32 of `warp`. boxes: (N, 4) int64 in cells of a `cells` grid.
    partner: (N,) int64 rows to blend with. weight: (N,) float32 share of the own row.
    """

    cells: tuple[int, int]
    matrices: Tensor
    boxes: Tensor
    partner: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> Views:
        """The same on another device, without waiting for it."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = on_device(value, device) if isinstance(value, Tensor) else value
        return Views(**moved)

    def apply(self, map_NDHW: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, D, H, W) -> (N, D, h, w) with (h, w) = size, in float32 at least.

        Raises: InvalidInputError where H and W are no whole multiples of the cells.
        """
        height, width = map_NDHW.shape[2:]
        factor = height // self.cells[0]
        if (factor * self.cells[0], factor * self.cells[1]) != (height, width):
            raise InvalidInputError(
                f"a map of {height}x{width} is no whole multiple of the {self.cells} cells that"
                " crops are drawn in: take a TokenAdapt scale that divides the tokenizer's patch"
            )
        turned = warp(map_NDHW, self.matrices)
        cut = resize_crop(turned, self.boxes * factor, size)
        return mixup(cut, cut[self.partner], self.weight).contiguous()


def draw_views(config: ViewConfig, draws: Draws, cells: tuple[int, int], block: int) -> Views:
    """The augmentation of each row, keyed by its row number.

    cells: (rows, columns) of the grid that boxes are drawn in. block: rows that are blended among
    each other; the last block may have fewer.
    """
    adapt, count = config.adapt(), len(draws.rows)
    turn = choose_warp(adapt, draws)
    matrices = affine_matrices(
        torch.from_numpy(turn.flip),
        torch.from_numpy(turn.rotate),
        torch.from_numpy(turn.shift),
        torch.from_numpy(turn.shear),
        aspect=cells[0] / cells[1],
    )
    drawn = draws.uniform("view.crop", RESIZED_DRAWS)
    cropped = draws.uniform("view.cropped") < config.crop_probability  # (N, 1)
    boxes = np.where(
        cropped,
        resized_boxes(drawn, cells, adapt.crop.area, adapt.crop.aspect),
        centre_boxes(count, cells, cells),
    )
    partner, weight = [], []
    for start in range(0, count, block):
        some = draws.take(slice(start, start + block))
        mix = choose_mix(adapt.mix, some, "view.mix", cells)
        partner.append(mix.partner + start)
        weight.append(mix.weight)
    return Views(
        cells=cells,
        matrices=matrices,
        boxes=torch.from_numpy(boxes),
        partner=torch.from_numpy(np.concatenate(partner)),
        weight=torch.from_numpy(np.concatenate(weight)),
    )


def unit_range(inputs: Tensor) -> Tensor:
    """Pictures as they travel (uint8, or float in [0, 1]) to float32 in [0, 1]."""
    return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs.float()
