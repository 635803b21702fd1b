"""How well TokenAdapt augments tokens, on pictures that taught it nothing.

For each operation alone: TokenAdapt, the naive operation on the tokens' vectors, and the round
trip of decoding, augmenting and encoding again; each against the tokens and the pixels of the
picture that was truly augmented (the paper's figures 3 and C and its table B as numbers).

Shape letters: N rows, D channels of a code, H and W grid, h and w grid of the result, K codes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from services.augment.tokenadapt import TokenAdapt
from services.plan.draws import Draws
from services.tokens.tokenizer import TokenizerModel, resized
from services.tokens.vitvqgan import psnr
from services.types import IntArray
from trainers.picture_config import ViewConfig
from trainers.ranks import sum_over_ranks
from trainers.views import Views, draw_views

OPERATIONS = ("hflip", "rotate", "translate", "shear", "affine", "crop", "mixup")
METHODS = ("tokenadapt", "naive", "roundtrip")

_BOUND = "tokenizer"
_MOST_DB = 100.0  # a picture that is reproduced exactly has no finite ratio

Adapt = Callable[[Tensor, Views], Tensor]
"""Embeddings (N, D, H, W) and what to do with them -> scores of the codes (N, h*w, K)."""


class Pairs(nn.Module):
    """f, the augmentation, g: from the embeddings of x's tokens to scores of those of A(x)."""

    def __init__(self, adapt: TokenAdapt) -> None:
        super().__init__()
        self.adapt = adapt

    def forward(self, emb_NDHW: Tensor, views: Views) -> Tensor:
        """(N, D, H, W) -> (N, h*w, K)."""
        spread = self.adapt.convert(emb_NDHW)
        # Places in a map need more digits than bfloat16 has.
        with torch.autocast(spread.device.type, enabled=False):
            spread = views.apply(spread.float(), self.adapt.out_map)
        return self.adapt.revert(spread)


@dataclass(frozen=True)
class Pair:
    """Embeddings of x's tokens (N, D, H, W), A(x) as pixels, and the ids of A(x) (N, h, w)."""

    emb: Tensor
    moved: Tensor
    wanted: Tensor


class Comparison:
    """The methods side by side; times of all calls add up until `speeds` is asked.

    out_grid: (h, w) of the result. seed, block: of the draws and of Mixup's partners.
    figures: names of the rows that `measure` gives.
    """

    def __init__(
        self,
        tokenizer: TokenizerModel,
        out_grid: tuple[int, int],
        views: ViewConfig,
        *,
        seed: int,
        block: int,
        device: torch.device,
    ) -> None:
        spec = tokenizer.spec
        self.grid = (spec.grid_height, spec.grid_width)
        self.out_grid = out_grid
        patch = spec.image_height // spec.grid_height
        self._out_size = (out_grid[0] * patch, out_grid[1] * patch)
        self._seed, self._block = seed, block
        self._tokenizer = _frozen(tokenizer, device)
        same = out_grid == self.grid
        self._after = (
            self._tokenizer if same else _frozen(resized(tokenizer, self._out_size), device)
        )
        self.codebook = tokenizer.codebook.to(device)
        self._operations = {name: alone(views, name) for name in OPERATIONS}
        self.figures = tuple(
            f"{operation}_{method}_{figure}"
            for operation in OPERATIONS
            for method in (*METHODS, _BOUND)
            for figure in _figures_of(method)
        )
        self._seconds = torch.zeros(len(OPERATIONS), len(METHODS), dtype=torch.float64)
        self._rows = 0

    def views(
        self, config: ViewConfig, rows: IntArray, epoch: int, cells: tuple[int, int]
    ) -> Views:
        """A of these rows, its boxes in whole `cells`."""
        views = draw_views(config, Draws(self._seed, epoch, rows), cells, self._block)
        return views.to(self.codebook.weight.device)

    @torch.no_grad()
    def pair(self, images: Tensor, views: Views) -> Pair:
        """The pair of each picture. images: (N, 3, height, width) in [0, 1].

        In float32: rounded targets would teach other tokens than those that ingest writes.
        """
        with torch.autocast(images.device.type, enabled=False):
            moved = views.apply(images, self._out_size).clamp(0, 1)
            emb = self.codebook.embed(self._tokenizer.encode(images))
            return Pair(emb, moved, self._after.encode(moved))

    @torch.no_grad()
    def measure(self, adapt: Adapt, images: Tensor, rows: IntArray) -> Tensor:
        """(len(figures), N): each figure of each row. A row number of -1 counts in no speed."""
        found = []
        for number, config in enumerate(self._operations.values()):
            # Boxes of whole tokens: the naive way is met where it is at its best.
            views = self.views(config, rows, 0, self.grid)
            pair = self.pair(images, views)
            for method in METHODS:
                ids = self._timed(number, method, adapt, pair.emb, views)
                found.append((ids == pair.wanted).float().flatten(1).mean(1))
                found.append(self._quality(ids, pair.moved))
            found.append(self._quality(pair.wanted, pair.moved))
        self._rows += int((rows >= 0).sum())
        return torch.stack(found)

    def speeds(self, world: int) -> dict[str, float]:
        """Pictures a second of each operation and method, the way from ids to ids, on one worker.

        Begins anew with each call.
        """
        device = self.codebook.weight.device
        told = torch.cat([self._seconds.flatten(), torch.tensor([float(self._rows)])]).to(device)
        *seconds, rows = sum_over_ranks(told, world).tolist()
        self._seconds.zero_()
        self._rows = 0
        names = [f"{operation}_{method}" for operation in OPERATIONS for method in METHODS]
        return {
            f"{name}_images_per_second": rows / max(spent, 1e-9)
            for name, spent in zip(names, seconds, strict=True)
        }

    def _timed(self, number: int, method: str, adapt: Adapt, emb: Tensor, views: Views) -> Tensor:
        """Ids (N, h, w) by a method; the time that it took is noted for the operation."""
        began = _clock(emb.device)
        ids: Tensor
        if method == "tokenadapt":
            ids = adapt(emb, views).argmax(-1).view(-1, *self.out_grid)
        else:
            with torch.autocast(emb.device.type, enabled=False):
                if method == "naive":
                    ids = self.codebook.quantise(views.apply(emb, self.out_grid))
                else:
                    shown = self._tokenizer.decode(self.codebook.quantise(emb))
                    ids = self._after.encode(views.apply(shown, self._out_size).clamp(0, 1))
        self._seconds[number, METHODS.index(method)] += _clock(emb.device) - began
        return ids

    def _quality(self, ids: Tensor, moved: Tensor) -> Tensor:
        """(N,) dB of the decoded ids against the truly augmented pictures."""
        with torch.autocast(moved.device.type, enabled=False):
            shown: Tensor = self._after.decode(ids)
            return psnr(shown, moved).clamp(max=_MOST_DB)


def report(figures: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """The figures of `Comparison`, means over rows and speeds, as operations -> name -> method.

    The method "tokenizer" decodes the true tokens of A(x): what no method can be expected to pass.
    """
    operations: dict[str, dict[str, dict[str, float]]] = {}
    for operation in OPERATIONS:
        operations[operation] = {
            method: {
                figure: figures[f"{operation}_{method}_{figure}"]
                for figure in (*_figures_of(method), *_speeds_of(method))
            }
            for method in (*METHODS, _BOUND)
        }
    return {"operations": operations}


def alone(views: ViewConfig, operation: str) -> ViewConfig:
    """One operation on every row, as strong as in training, and no other."""
    still = replace(
        views,
        flip_probability=0.0,
        affine_probability=0.0,
        crop_probability=0.0,
        mixup_probability=0.0,
    )
    turned = {"affine_probability": 1.0, "affine_each": 1.0}
    strengths = {"rotate": "rotate_degrees", "translate": "translate", "shear": "shear_degrees"}
    if operation in strengths:
        others = {name: 0.0 for key, name in strengths.items() if key != operation}
        return replace(still, **turned, **others)
    if operation == "affine":
        return replace(still, affine_probability=1.0)
    name = {"hflip": "flip", "crop": "crop", "mixup": "mixup"}[operation]
    return replace(still, **{f"{name}_probability": 1.0})


def _figures_of(method: str) -> tuple[str, ...]:
    return ("psnr_db",) if method == _BOUND else ("agreement", "psnr_db")


def _speeds_of(method: str) -> tuple[str, ...]:
    return () if method == _BOUND else ("images_per_second",)


def _frozen(tokenizer: TokenizerModel, device: torch.device) -> TokenizerModel:
    return tokenizer.to(device).eval().requires_grad_(False)


def _clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was given.

    One thread of a CPU is timed by what it computed: others at work on the machine do not count.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif torch.get_num_threads() == 1:
        return time.thread_time()
    return time.perf_counter()
