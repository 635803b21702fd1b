"""The geometry of a recipe on masks: what `Augmenter` does to rows, their pixels' classes follow.

Every choice is made from the same draws as for the tokens. A mask is read once, by nearest
neighbour, at the place that flip, affine and crop together send each pixel to. Where they reach
outside of the picture the tokens repeat its edge, but the mask has no class: nobody knows what
stood there.

Shape letters: N rows, H and W pixels of the stored picture, h and w of the training crop.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from services.augment.augmenter import ADAPT_CROP, as_tensor, chosen_matrices, plain_rows
from services.augment.boxes import PLAIN_CROP, choose_boxes
from services.augment.config import RecipeConfig
from services.errors import InvalidInputError
from services.plan.draws import Draws
from services.tokens.devices import on_device
from services.types import IGNORED

Grid = tuple[int, int]


def augment_masks(
    config: RecipeConfig,
    masks_NHW: Tensor,
    draws: Draws,
    blocks: int,
    *,
    grid: Grid,
    map_grid: Grid | None,
) -> Tensor:
    """(N, H, W) uint8 -> (N, h, w) uint8 on the same device, as `Augmenter` moves the rows' tokens.

    draws, blocks: those of the rows. grid: stored tokens (height, width), of which the crop keeps
    `config.crop`. map_grid: cells of TokenAdapt's map in which its crops are drawn; None where the
    recipe's share of it is 0.
    Raises InvalidInputError where pixels are no whole number of tokens.
    """
    rows, *pixels = masks_NHW.shape
    if pixels[0] % grid[0] or pixels[1] % grid[1]:
        raise InvalidInputError(
            f"masks of {pixels[0]}x{pixels[1]} pixels for {grid[0]}x{grid[1]} tokens: a token is no"
            " whole number of pixels, so no crop fits both; ingest with a tokenizer whose patch"
            " divides the picture"
        )
    size = config.crop[0] * pixels[0] // grid[0], config.crop[1] * pixels[1] // grid[1]
    done = []
    for start in range(0, rows, rows // blocks):
        block = slice(start, start + rows // blocks)
        done.append(_block(config, masks_NHW[block], draws.take(block), size, grid, map_grid))
    return torch.cat(done)


def _block(
    config: RecipeConfig,
    masks_NHW: Tensor,
    draws: Draws,
    size: Grid,
    grid: Grid,
    map_grid: Grid | None,
) -> Tensor:
    plain = plain_rows(config.adapt, len(masks_NHW))
    boxes = choose_boxes(config.plain_crop, draws.take(slice(plain)), PLAIN_CROP, grid, config.crop)
    parts = [sample(masks_NHW[:plain], as_tensor(boxes, masks_NHW), grid, size)]
    if plain < len(masks_NHW) and map_grid is not None:
        adapt, last = config.adapt, draws.take(slice(plain, None))
        scale = map_grid[0] // grid[0]
        out_map = config.crop[0] * scale, config.crop[1] * scale
        boxes = choose_boxes(adapt.crop, last, ADAPT_CROP, map_grid, out_map)
        matrices = None
        if adapt.warps:
            matrices = on_device(chosen_matrices(adapt, last, map_grid), masks_NHW.device)
        boxes_n4 = as_tensor(boxes, masks_NHW)
        parts.append(sample(masks_NHW[plain:], boxes_n4, map_grid, size, matrices))
    return torch.cat(parts)


def sample(
    masks_NHW: Tensor,
    boxes_N4: Tensor,
    cells: Grid,
    size: Grid,
    matrices_N23: Tensor | None = None,
) -> Tensor:
    """Masks (N, H, W) uint8 turned by `geometry.warp`'s matrices, then cut: (N, h, w) uint8.

    boxes_N4: (y, x, height, width) in `cells` (rows, columns) of the turned picture. size: (h, w).
    All on one device.
    """
    device, (h, w) = masks_NHW.device, size
    box = boxes_N4.double()[:, :, None]  # (N, 4, 1)
    # Where pixel centres lie in the turned picture, which spans -1 to 1.
    y = (box[:, 0] + (torch.arange(h, device=device) + 0.5) / h * box[:, 2]) / cells[0] * 2 - 1
    x = (box[:, 1] + (torch.arange(w, device=device) + 0.5) / w * box[:, 3]) / cells[1] * 2 - 1
    places = torch.stack([x[:, None, :].expand(-1, h, w), y[:, :, None].expand(-1, h, w)], dim=3)
    if matrices_N23 is not None:
        turn = matrices_N23.double()
        places = places @ turn[:, None, :, :2].mT + turn[:, None, None, :, 2]
    # Around the picture grid_sample reads 0, which stands for `IGNORED` here.
    shifted = (masks_NHW.float() - IGNORED)[:, None]
    read = F.grid_sample(shifted, places.float(), mode="nearest", align_corners=False)
    return (read[:, 0] + IGNORED).to(torch.uint8)
