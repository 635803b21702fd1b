"""The module that applies a recipe to batches.

Order (published): Token-EDA on ids; look-up; Emb-Noise or ColorAdapt; then the last rows of each
block go f -> flip and affine -> crop -> mix -> g -> argmax, the others crop -> mix -> nearest code.

Shape letters: N rows, D channels of a code, K codes, H and W stored grid, h and w training grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.augment.boxes import PLAIN_CROP, choose_boxes
from services.augment.choices import (
    ColorChoice,
    MixChoice,
    choose_color,
    choose_eda,
    choose_mix,
    choose_warp,
)
from services.augment.color import (
    Statistics,
    code_statistics,
    color_noise,
    normals_from_levels,
    statistics,
    transfer,
)
from services.augment.config import AdaptConfig, CropConfig, MixConfig, RecipeConfig, check_crop
from services.augment.crop import resize_crop, window
from services.augment.eda import replace_synonyms, swap_windows
from services.augment.geometry import affine_matrices, warp
from services.augment.mix import mixup, paste
from services.augment.tokenadapt import TokenAdapt, codebook_digest
from services.errors import InvalidInputError
from services.plan.draws import Draws
from services.tokens.codebook import Codebook, Metric
from services.tokens.devices import on_device
from services.types import IntArray
from services.wire.seit import v1 as wire

ADAPT_CROP = "adapt.crop"
"""Operation under which the crop of rows of the TokenAdapt path draws."""

_CPU_ROWS, _GPU_ROWS = 2, 256  # rows that networks and changes of colour see at a time


@dataclass
class Batch:
    """What a model reads, with soft targets in compact form.

    inputs: (N, h, w) ids of an integer type, or (N, D, h, w) float32 embeddings.
    label, label_b: (N,) int64. mix: (N,) float32 weight of `label`, 1 where a row is not mixed.
    """

    inputs: Tensor
    label: Tensor
    label_b: Tensor
    mix: Tensor


@dataclass
class Path:
    """Inputs of the rows of one path (n, ...), and how they were mixed."""

    inputs: Tensor
    mix: MixChoice


class Augmenter(nn.Module):
    """Applies a recipe to batches; it holds no randomness and keeps no state between calls.

    codebook: (K, D). tokenadapt: needed where the recipe's TokenAdapt share is above 0.
    Raises `InvalidInputError` where the recipe, the dataset's spec, the codebook and the
    TokenAdapt weights do not belong together.
    """

    codebook: Tensor
    synonyms: Tensor

    def __init__(
        self,
        config: RecipeConfig,
        spec: wire.TokenSpec,
        codebook: Tensor,
        tokenadapt: TokenAdapt | None = None,
        *,
        metric: Metric = "cosine",
    ) -> None:
        super().__init__()
        self.config = config
        self.grid = (spec.grid_height, spec.grid_width)
        self.metric: Metric = metric
        check_crop(self.grid, config.crop)
        if codebook.shape != (spec.codes, spec.channels):
            raise InvalidInputError(
                f"the codebook is {tuple(codebook.shape)}, the dataset's ids are for "
                f"({spec.codes}, {spec.channels}): they would mean other tokens; give the "
                "codebook that is kept with the dataset"
            )
        self.register_buffer("codebook", codebook.detach().float(), persistent=False)
        # Noise is measured by the codes that it disturbs: the published ones have a spread of
        # about 1, those of a tokenizer that keeps its codes on the unit sphere 1 / sqrt(D).
        self._spread = float(self.codebook.square().mean().sqrt())
        if config.eda.synonym_probability > 0:
            synonyms = Codebook(self.codebook, metric).synonyms(config.eda.synonym_count)
            self.register_buffer("synonyms", synonyms, persistent=False)
        self.tokenadapt: TokenAdapt | None = None
        if config.adapt.share > 0:
            self.tokenadapt = self._checked(tokenadapt)
            if config.adapt.compiled:
                self.tokenadapt.compile_networks()

    def _checked(self, model: TokenAdapt | None) -> TokenAdapt:
        """The TokenAdapt networks, if they fit the recipe and the codebook."""
        name, share = self.config.name, self.config.adapt.share
        if model is None:
            raise InvalidInputError(
                f"recipe {name!r} sends {share:g} of its rows through TokenAdapt, but no weights "
                "were given: give them (trainers/tokenadapt.py makes them), or set adapt.share to 0"
            )
        found, codes = model.config, tuple(self.codebook.shape)
        if (found.codes, found.channels) != codes:
            raise InvalidInputError(
                f"these TokenAdapt weights are for a codebook of ({found.codes}, "
                f"{found.channels}), the dataset's is {codes}: train TokenAdapt on this tokenizer"
            )
        if model.codebook and model.codebook != codebook_digest(self.codebook):
            raise InvalidInputError(
                f"these TokenAdapt weights were trained with codebook {model.codebook}, the "
                f"dataset's is {codebook_digest(self.codebook)}: the ids mean other vectors; "
                "train TokenAdapt on this tokenizer"
            )
        if (found.grid, found.out_grid) != (self.grid, self.config.crop):
            raise InvalidInputError(
                f"these TokenAdapt weights are laid out for grid {found.grid} and crop "
                f"{found.out_grid}, needed are {self.grid} and {self.config.crop}: call "
                "TokenAdapt.resized(grid, crop), which keeps the weights"
            )
        return model

    @torch.no_grad()
    def forward(self, ids_NHW: Tensor, labels_N: Tensor, draws: Draws, blocks: int) -> Batch:
        """Augment a batch of whole blocks; ids (N, H, W) of any integer type, labels (N,) int64.

        Ids are worked on where they are, and so are labels, which may stay on the host.
        draws: of the N rows, in order. Blocks are worked on one by one: rows are paired inside
        their block alone, and a block comes out the same to the bit, whatever came with it.
        Nothing waits for the device.

        With `output` "ids", what Emb-Noise, ColorAdapt, resizing and Mixup did in the embedding
        space is rounded to the nearest codes at the end, as published for pre-training and
        fine-tuning; with "embeddings" it reaches the model as it is, and rows of the TokenAdapt
        path come as the vectors of the ids that g chose.
        """
        rows = len(ids_NHW)
        if ids_NHW.shape[1:] != self.stored:
            raise InvalidInputError(
                f"rows are {tuple(ids_NHW.shape[1:])}, this recipe was built for {self.stored}: "
                "build it from the dataset's own spec"
            )
        if blocks < 1 or rows < blocks or rows % blocks or len(draws.rows) != rows:
            raise InvalidInputError(
                f"{rows} rows with draws for {len(draws.rows)} do not make {blocks} equal blocks: "
                "pairs would cross blocks; pass whole blocks and one draw a row"
            )
        if not self._embeds and not self.config.plain_mix.active:
            blocks = 1  # each row goes its own way
        size = rows // blocks
        done = []
        with torch.autocast(ids_NHW.device.type, enabled=False):
            for start in range(0, rows, size):
                block = slice(start, start + size)
                done.append(self._block(ids_NHW[block], labels_N[block], draws.take(block)))
        columns = zip(*((b.inputs, b.label, b.label_b, b.mix) for b in done), strict=True)
        return Batch(*(torch.cat(column) for column in columns))

    def _block(self, ids_NHW: Tensor, labels_N: Tensor, draws: Draws) -> Batch:
        config, rows = self.config, draws.rows
        plain = plain_rows(config.adapt, len(rows))
        first, last = draws.take(slice(plain)), draws.take(slice(plain, None))
        if config.eda.active:
            ids_NHW = self._edit(ids_NHW, draws)
        paths = []
        if not self._embeds:
            paths.append(self._plain_ids(ids_NHW, first))
        else:
            map_NDHW = self._lookup(ids_NHW)
            if config.color.active:
                map_NDHW = self._recolor(ids_NHW, map_NDHW, draws)
            if plain > 0:
                paths.append(self._plain_maps(map_NDHW[:plain], first))
            if plain < len(rows):
                paths.append(self._adapted_maps(map_NDHW[plain:], last))
        starts = (0, plain) if len(paths) > 1 else (0,)
        partner = [path.mix.partner + start for path, start in zip(paths, starts, strict=True)]
        return Batch(
            inputs=torch.cat([path.inputs for path in paths]),
            label=labels_N,
            label_b=labels_N[as_tensor(np.concatenate(partner), labels_N)],
            mix=as_tensor(np.concatenate([path.mix.share for path in paths]), labels_N),
        )

    @property
    def stored(self) -> tuple[int, ...]:
        """Shape of a row as it is given to `forward`."""
        return self.grid

    @property
    def _embeds(self) -> bool:
        """Whether anything happens in the embedding space; if not, ids stay ids throughout."""
        config = self.config
        return (
            config.color.active
            or config.adapt.share > 0
            or config.plain_crop.kind == "resized"
            or (config.plain_mix.active and config.plain_mix.mixup_alpha > 0)
        )

    def _edit(self, ids_NHW: Tensor, draws: Draws) -> Tensor:
        """Token-EDA."""
        choice = choose_eda(self.config.eda, draws, self.grid)
        edited = ids_NHW.long()
        if edited is ids_NHW:
            edited = edited.clone()
        if len(choice.synonym_rows):
            rows = as_tensor(choice.synonym_rows, edited)
            replaced, pick = as_tensor(choice.replace, edited), as_tensor(choice.pick, edited)
            shape = (len(rows), *self.grid)
            edited[rows] = replace_synonyms(
                edited[rows], self.synonyms, replaced.view(shape), pick.view(shape)
            )
        if len(choice.swap_rows):
            rows = as_tensor(choice.swap_rows, edited)
            edited[rows] = swap_windows(edited[rows], as_tensor(choice.windows, edited))
        return edited

    def _recolor(self, ids_NHW: Tensor, map_NDHW: Tensor, draws: Draws) -> Tensor:
        """Emb-Noise or ColorAdapt, in the given maps, which are those of the ids."""
        choice = choose_color(self.config.color, draws, map_NDHW.shape[1], self.grid)
        if len(choice.noise_rows):
            self._add_noise(map_NDHW, choice)
        if len(choice.adapt_rows):
            _adapt_colors(map_NDHW, self._statistics(ids_NHW, map_NDHW), choice)
        return map_NDHW

    def _statistics(self, ids_NHW: Tensor, map_NDHW: Tensor) -> Statistics:
        """Of each channel of each map."""
        if len(self.codebook) <= ids_NHW[0].numel():
            return code_statistics(ids_NHW, self.codebook)
        return piecewise_statistics(map_NDHW)

    def _add_noise(self, map_NDHW: Tensor, choice: ColorChoice) -> None:
        config = self.config.color
        scale, std = config.noise_scale * self._spread, config.noise_std * self._spread
        columns = (choice.noise_rows, choice.levels, choice.channel)
        for rows, levels, channel in _pieces(map_NDHW, *columns):
            element_NHWD = normals_from_levels(levels).view(len(rows), *self.grid, -1)
            noise_NDHW = color_noise(channel, element_NHWD.permute(0, 3, 1, 2), scale, std)
            map_NDHW.permute(0, 2, 3, 1).index_add_(0, rows, noise_NDHW.permute(0, 2, 3, 1))

    def _plain_ids(self, ids_NHW: Tensor, draws: Draws) -> Path:
        boxes, mix = self._plain_choices(draws)
        cut = window(ids_NHW, as_tensor(boxes, ids_NHW), self.config.crop)
        if self.config.plain_mix.active:
            cut = paste(cut, cut[as_tensor(mix.partner, cut)], as_tensor(mix.boxes, cut))
        return Path(cut if self.config.output == "ids" else self._lookup(cut), mix)

    def _plain_maps(self, map_NDHW: Tensor, draws: Draws) -> Path:
        boxes, mix = self._plain_choices(draws)
        cut = cut_map(self.config.plain_crop, map_NDHW, boxes, self.config.crop)
        cut = mixed_map(self.config.plain_mix, cut, mix)
        if self.config.output == "ids":
            cut = Codebook(self.codebook, self.metric).quantise(cut)
        return Path(cut, mix)

    def _plain_choices(self, draws: Draws) -> tuple[IntArray, MixChoice]:
        config = self.config
        boxes = choose_boxes(config.plain_crop, draws, PLAIN_CROP, self.grid, config.crop)
        return boxes, choose_mix(config.plain_mix, draws, "plain.mix", config.crop)

    def _adapted_maps(self, map_NDHW: Tensor, draws: Draws) -> Path:
        assert self.tokenadapt is not None  # the share is above 0, which `__init__` checked
        config, model = self.config.adapt, self.tokenadapt
        piece = _piece(map_NDHW)
        low = torch.autocast(
            map_NDHW.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"
        )
        with low:
            spread = torch.cat(
                [model.convert(part) for part in torch.split(map_NDHW, piece)]
            ).float()
        if config.warps:
            matrices = chosen_matrices(config, draws, model.map_grid)
            spread = warp(spread, on_device(matrices, spread.device))
        boxes = choose_boxes(config.crop, draws, ADAPT_CROP, model.map_grid, model.out_map)
        spread = cut_map(config.crop, spread, boxes, model.out_map)
        mix = choose_mix(config.mix, draws, "adapt.mix", model.out_map)
        spread = mixed_map(config.mix, spread, mix)
        with low:
            ids = torch.cat([model.revert(part).argmax(-1) for part in torch.split(spread, piece)])
        ids = ids.view(-1, *self.config.crop)
        return Path(ids if self.config.output == "ids" else self._lookup(ids), mix)

    def _lookup(self, ids: Tensor) -> Tensor:
        """Vectors of ids: (N, h, w) -> (N, D, h, w), in the channels-last memory order."""
        return F.embedding(ids.long(), self.codebook).permute(0, 3, 1, 2)


def plain_rows(config: AdaptConfig, rows: int) -> int:
    """How many of a block's rows, the first ones, do not take the TokenAdapt path.

    The plan has shuffled the rows, so the last ones are as good a choice as any.
    """
    return rows - round(config.share * rows)


def chosen_matrices(config: AdaptConfig, draws: Draws, grid: tuple[int, int]) -> Tensor:
    """(n, 2, 3) float32 of `geometry.warp` for rows of the TokenAdapt path; grid: of its map."""
    turn = choose_warp(config, draws)
    return affine_matrices(
        torch.from_numpy(turn.flip),
        torch.from_numpy(turn.rotate),
        torch.from_numpy(turn.shift),
        torch.from_numpy(turn.shear),
        aspect=grid[0] / grid[1],
    )


def as_tensor(values: npt.NDArray[np.generic], like: Tensor) -> Tensor:
    return on_device(torch.from_numpy(values), like.device)


def _adapt_colors(map_NDHW: Tensor, known: Statistics, choice: ColorChoice) -> None:
    """ColorAdapt, in the given maps, whose statistics are known."""
    mean, spread = known
    rows, partner = as_tensor(choice.adapt_rows, map_NDHW), as_tensor(choice.partner, map_NDHW)
    changed = transfer((mean[rows], spread[rows]), (mean[partner], spread[partner]))
    gain, shift = (
        torch.full_like(mean, other).index_copy_(0, rows, values)
        for other, values in zip((1.0, 0.0), changed, strict=True)
    )
    # All maps at once, times 1 where a row stays: to pick out those that change takes longer.
    torch.addcmul(shift, map_NDHW, gain, out=map_NDHW)


def piecewise_statistics(map_NDHW: Tensor) -> Statistics:
    """`statistics`, of as many rows at a time as the device works on best."""
    parts = [statistics(part) for part in torch.split(map_NDHW, _piece(map_NDHW))]
    mean, spread = (torch.cat(part) for part in zip(*parts, strict=True))
    return mean, spread


def _pieces(map_NDHW: Tensor, *columns: npt.NDArray[np.generic]) -> Iterator[tuple[Tensor, ...]]:
    """As many entries of the columns at a time as rows of the map are worked on together."""
    parts = (torch.split(as_tensor(column, map_NDHW), _piece(map_NDHW)) for column in columns)
    return zip(*parts, strict=True)


def _piece(map_NDHW: Tensor) -> int:
    """Rows to work on at a time: on a CPU, whose memory is slow, as many as its cache holds."""
    return _CPU_ROWS if map_NDHW.device.type == "cpu" else _GPU_ROWS


def select(values: Tensor, index: Tensor) -> Tensor:
    """Rows in the memory order that they have: PyTorch itself would turn channels-last around."""
    if values.ndim == 4 and not values.is_contiguous():
        return values.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    return values.index_select(0, index)


def cut_map(config: CropConfig, map_NDHW: Tensor, boxes: IntArray, size: tuple[int, int]) -> Tensor:
    cut = resize_crop if config.kind == "resized" else window
    return cut(map_NDHW, as_tensor(boxes, map_NDHW), size)


def mixed_map(config: MixConfig, map_NDhw: Tensor, mix: MixChoice) -> Tensor:
    """Mixup and CutMix with partners of the same path, all as they were before."""
    if not config.active:
        return map_NDhw
    partner = select(map_NDhw, as_tensor(mix.partner, map_NDhw))
    if config.mixup_alpha > 0:
        map_NDhw = mixup(map_NDhw, partner, as_tensor(mix.weight, map_NDhw))
    if config.cutmix_alpha > 0:
        map_NDhw = paste(map_NDhw, partner, as_tensor(mix.boxes, map_NDhw))
    return map_NDhw
