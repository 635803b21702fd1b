"""A recipe on maps of DCT coefficients (paper, 4.6.2 and Table 8).

What TokenAdapt learns for codes is known here in closed form: a DCT is linear and has an inverse,
so f is the inverse transform, to the planes Y, Cb and Cr, and g the transform with its rounding.
Rows of the TokenAdapt path are turned, cropped and mixed between the two. All else is as for the
embeddings of codes: swapped windows, Emb-Noise, ColorAdapt, and for the plain rows resized crops
of the map itself, as SeiT does with tokens.

Channels differ in spread by orders of magnitude. They are divided by that of the codebook's
vectors, so that noise, and a model's first layer, meet all of them alike.

Shape letters as in `augmenter`; S side of a block.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from services.augment.augmenter import (
    ADAPT_CROP,
    Augmenter,
    Path,
    as_tensor,
    chosen_matrices,
    cut_map,
    mixed_map,
    piecewise_statistics,
)
from services.augment.boxes import choose_boxes
from services.augment.choices import choose_eda, choose_mix
from services.augment.color import Statistics
from services.augment.config import RecipeConfig, check_coefficients
from services.augment.eda import swap_windows
from services.augment.geometry import warp
from services.errors import InvalidInputError
from services.plan.draws import Draws
from services.tokens.dct import DCT
from services.tokens.devices import on_device
from services.wire.seit import v1 as wire

_LEAST_SPREAD = 0.5  # of a channel that the codebook has (almost) always at 0


def channel_spread(transform: DCT) -> Tensor:
    """(D, 1, 1) float32: what a model's input divides each channel by."""
    weight_KD = transform.codebook.weight.detach().float()
    return weight_KD.square().mean(0).sqrt().clamp(min=_LEAST_SPREAD).view(-1, 1, 1)


class CoefficientAugmenter(Augmenter):
    """Applies a recipe to maps of coefficients: (N, D, H, W) -> (N, D, h, w) float32.

    Raises: InvalidInputError where the recipe asks for codes, or the transform is another.
    """

    spread: Tensor

    def __init__(self, config: RecipeConfig, spec: wire.TokenSpec, transform: DCT) -> None:
        check_coefficients(config)
        if transform.spec != spec:
            raise InvalidInputError(
                f"the DCT is for {transform.spec}, the dataset's rows are {spec}: their"
                " coefficients would mean other pictures; use the dataset's own"
            )
        weight_KD = transform.codebook.weight
        without = replace(config, adapt=replace(config.adapt, share=0.0))  # no networks are needed
        super().__init__(without, spec, weight_KD, metric="euclidean")
        self.config = config
        self.transform = transform
        self.register_buffer("spread", channel_spread(transform), persistent=False)
        self._spread = 1.0  # of what Emb-Noise is measured by

    @property
    def stored(self) -> tuple[int, ...]:
        return len(self.spread), *self.grid

    @property
    def _embeds(self) -> bool:
        return True

    def _edit(self, ids_NHW: Tensor, draws: Draws) -> Tensor:
        """Swapped windows: whole blocks change places."""
        choice = choose_eda(self.config.eda, draws, self.grid)
        if not len(choice.swap_rows):
            return ids_NHW
        maps_NDHW = ids_NHW.clone()
        rows = as_tensor(choice.swap_rows, maps_NDHW)
        places = torch.arange(self.grid[0] * self.grid[1], device=maps_NDHW.device)
        places = places.view(1, *self.grid).expand(len(rows), -1, -1)
        moved = swap_windows(places, as_tensor(choice.windows, maps_NDHW)).flatten(1)[:, None]
        flat = maps_NDHW[rows].flatten(2)
        swapped = flat.gather(2, moved.expand(-1, flat.shape[1], -1))
        maps_NDHW[rows] = swapped.view(len(rows), *maps_NDHW.shape[1:])
        return maps_NDHW

    def _lookup(self, ids: Tensor) -> Tensor:
        """Coefficients are the vectors themselves; each channel by its spread."""
        return ids.float() / self.spread

    def _statistics(self, ids_NHW: Tensor, map_NDHW: Tensor) -> Statistics:
        return piecewise_statistics(map_NDHW)  # there are no codes

    def _adapted_maps(self, map_NDHW: Tensor, draws: Draws) -> Path:
        config, block = self.config.adapt, self.transform.config.block
        height, width = self.grid[0] * block, self.grid[1] * block
        size = self.config.crop[0] * block, self.config.crop[1] * block
        planes = self.transform.planes(map_NDHW * self.spread)
        if config.warps:
            matrices = chosen_matrices(config, draws, (height, width))
            planes = warp(planes, on_device(matrices, planes.device))
        boxes = choose_boxes(config.crop, draws, ADAPT_CROP, (height, width), size)
        planes = cut_map(config.crop, planes, boxes, size)
        mix = choose_mix(config.mix, draws, "adapt.mix", size)
        planes = mixed_map(config.mix, planes, mix)
        return Path(self._lookup(self.transform.of_planes(planes)), mix)
