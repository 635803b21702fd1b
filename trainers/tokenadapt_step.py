"""What a step of TokenAdapt's training computes (paper, section 3.3.2, equations 2 and 3).

Also its report: how well TokenAdapt does on pictures that taught it nothing, for each operation
alone, against the naive operation on the tokens' vectors and against decoding, augmenting and
encoding again (the paper's figure 3 and tables B and C as numbers).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.augment.tokenadapt import TokenAdapt, TokenAdaptConfig, codebook_digest
from services.errors import InvalidInputError
from services.plan.draws import Draws
from services.shards.store import open_store, read_url
from services.stream.batch import StreamBatch
from services.tokens.tokenizer import TokenizerModel, load_tokenizer, resized
from services.tokens.vitvqgan import psnr
from trainers.context import Place
from trainers.loop import train
from trainers.picture_config import TokenAdaptRun, ViewConfig
from trainers.picture_streams import open_pictures
from trainers.ranks import sum_over_ranks
from trainers.task import PlainTask
from trainers.views import Views, draw_views, unit_range

TOKENADAPT = "tokenadapt.safetensors"
"""File of a finished run: f and g as `TokenAdapt.from_bytes` reads them."""
REPORT = "report.json"
"""File of a finished run: for each operation and method, agreement and PSNR; and their speed."""

METHODS = ("tokenadapt", "naive", "roundtrip")
_BOUND = "tokenizer"
OPERATIONS = ("hflip", "rotate", "translate", "shear", "affine", "crop", "mixup")

_MOST_DB = 100.0  # a picture that is reproduced exactly has no finite ratio


def tokenadapt_worker(config: TokenAdaptRun, place: Place) -> dict[str, float]:
    """One worker of TokenAdapt's run."""
    tokenizer = load_tokenizer(read_url(config.tokenizer))
    context = open_pictures(config, place, tokenizer.spec)
    return train(config, context, TokenAdaptTask(config, tokenizer, place.device))


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


class TokenAdaptTask(PlainTask):
    """Learn to give the tokens of A(x) from the tokens of x, for geometric A and Mixup.

    Raises: InvalidInputError where crop and scale do not fit the tokenizer's grid and patch.
    """

    name = "tokenadapt"
    best = "loss"
    higher = False

    def __init__(
        self, config: TokenAdaptRun, tokenizer: TokenizerModel, device: torch.device
    ) -> None:
        self._config, model = config, config.model
        spec = tokenizer.spec
        grid = (spec.grid_height, spec.grid_width)
        out_grid = grid if model.crop is None else (model.crop, model.crop)
        patch = spec.image_height // spec.grid_height
        if patch % model.scale or out_grid[0] > grid[0] or out_grid[1] > grid[1]:
            raise InvalidInputError(
                f"model.scale {model.scale} and model.crop {model.crop} do not fit tokens of"
                f" {patch} pixels on a grid of {grid}: the scale must divide the pixels of a token,"
                " and the crop be no larger than the grid"
            )
        size = model.size
        self.model_config = TokenAdaptConfig(
            grid=grid,
            out_grid=out_grid,
            channels=spec.channels,
            codes=spec.codes,
            dim=size.width,
            heads=size.heads,
            mlp=size.hidden,
            depth=size.depth,
            dim_head=model.head_width,
            scale=model.scale,
        )
        self._out_size = (out_grid[0] * patch, out_grid[1] * patch)
        self._digest = codebook_digest(tokenizer.codebook.weight)
        self._tokenizer = _frozen(tokenizer, device)
        same = out_grid == grid
        self._after = (
            self._tokenizer if same else _frozen(resized(tokenizer, self._out_size), device)
        )
        self._codebook = tokenizer.codebook.to(device)
        self._operations = {name: alone(config.views, name) for name in OPERATIONS}
        self.figures = (
            "loss",
            *(
                f"{operation}_{method}_{figure}"
                for operation in OPERATIONS
                for method in (*METHODS, _BOUND)
                for figure in _figures_of(method)
            ),
        )
        self._seconds = torch.zeros(len(METHODS), dtype=torch.float64)
        self._rows = 0

    def build_model(self, *, fresh: bool) -> Pairs:
        """Starts from nothing, whether `fresh` or not."""
        return Pairs(TokenAdapt(self.model_config, self._digest))

    def check(self, batch: StreamBatch) -> None:
        """Any picture can be learned from; streams leave out what is none."""

    def loss(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        images = unit_range(batch.inputs)
        scale = self.model_config.scale
        cells = (self.model_config.grid[0] * scale, self.model_config.grid[1] * scale)
        views = self._views(self._config.views, batch, batch.epoch, cells)
        emb, _, wanted = self._pair(images, views)
        logits = model(emb, views)
        return (_cross_entropy(logits, wanted) * batch.weight).sum()

    def evaluate(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        assert isinstance(model, Pairs)
        images = unit_range(batch.inputs)
        grid = self.model_config.grid
        views = self._views(self._config.views, batch, 0, grid)
        emb, _, wanted = self._pair(images, views)
        rows = [_cross_entropy(model(emb, views), wanted)]
        for operation in self._operations.values():
            # Boxes of whole tokens: the naive way is met where it is at its best.
            views = self._views(operation, batch, 0, grid)
            emb, moved, wanted = self._pair(images, views)
            for number in range(len(METHODS)):
                ids = self._timed(number, model, emb, views)
                rows.append((ids == wanted).float().flatten(1).mean(1))
                rows.append(self._quality(ids, moved))
            rows.append(self._quality(wanted, moved))
        self._rows += int((batch.rows >= 0).sum()) * len(self._operations)
        return (torch.stack(rows) * batch.weight).sum(1)

    def validated(self, world: int) -> Mapping[str, float]:
        """Pictures a second of each method, the way from ids to ids, on one worker."""
        device = self._codebook.weight.device
        sums = torch.cat([self._seconds, torch.tensor([float(self._rows)])]).to(device)
        *seconds, rows = sum_over_ranks(sums, world).tolist()
        self._seconds.zero_()
        self._rows = 0
        return {
            f"{method}_images_per_second": rows / max(spent, 1e-9)
            for method, spent in zip(METHODS, seconds, strict=True)
        }

    def export(self, model: nn.Module, out: str, figures: Mapping[str, float]) -> None:
        assert isinstance(model, Pairs)
        store = open_store(out)
        store.write(TOKENADAPT, model.adapt.to_bytes())
        store.write(REPORT, json.dumps(report(figures), indent=2).encode())

    def _views(
        self, config: ViewConfig, batch: StreamBatch, epoch: int, cells: tuple[int, int]
    ) -> Views:
        draws = Draws(self._config.loop.seed, epoch, batch.rows)
        views = draw_views(config, draws, cells, self._config.order.block)
        return views.to(batch.inputs.device)

    @torch.no_grad()
    def _pair(self, images: Tensor, views: Views) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of x (N, D, H, W), A(x) as pixels, and the ids of A(x) (N, h, w).

        In float32: rounded targets would teach other tokens than those that ingest writes.
        """
        with torch.autocast(images.device.type, enabled=False):
            moved = views.apply(images, self._out_size).clamp(0, 1)
            emb = self._codebook.embed(self._tokenizer.encode(images))
            return emb, moved, self._after.encode(moved)

    def _timed(self, number: int, model: Pairs, emb: Tensor, views: Views) -> Tensor:
        """Ids (N, h, w) by the method of that number; the time that it took is noted."""
        _settle(emb.device)
        began = time.perf_counter()
        ids: Tensor
        if METHODS[number] == "tokenadapt":
            ids = model(emb, views).argmax(-1).view(-1, *self.model_config.out_grid)
        else:
            with torch.autocast(emb.device.type, enabled=False):
                if METHODS[number] == "naive":
                    ids = self._codebook.quantise(views.apply(emb, self.model_config.out_grid))
                else:
                    shown = self._tokenizer.decode(self._codebook.quantise(emb))
                    ids = self._after.encode(views.apply(shown, self._out_size).clamp(0, 1))
        _settle(emb.device)
        self._seconds[number] += time.perf_counter() - began
        return ids

    def _quality(self, ids: Tensor, moved: Tensor) -> Tensor:
        """(N,) dB of the decoded ids against the truly augmented pictures."""
        with torch.autocast(moved.device.type, enabled=False):
            shown: Tensor = self._after.decode(ids)
            return psnr(shown, moved).clamp(max=_MOST_DB)


def report(figures: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """The figures of a validation: operations -> operation -> method -> figure, and speeds.

    The method "tokenizer" decodes the true tokens of A(x): what no method can be expected to pass.
    """
    operations: dict[str, dict[str, dict[str, float]]] = {name: {} for name in OPERATIONS}
    for operation in OPERATIONS:
        for method in (*METHODS, _BOUND):
            operations[operation][method] = {
                figure: figures[f"validation_{operation}_{method}_{figure}"]
                for figure in _figures_of(method)
            }
    speed = {name: figures[f"validation_{name}_images_per_second"] for name in METHODS}
    return {"operations": operations, "images_per_second": speed}


def _figures_of(method: str) -> tuple[str, ...]:
    return ("psnr_db",) if method == _BOUND else ("agreement", "psnr_db")


def _frozen(tokenizer: TokenizerModel, device: torch.device) -> TokenizerModel:
    return tokenizer.to(device).eval().requires_grad_(False)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """(N,) equation 3, in nats: mean over a row's tokens. logits: (N, h*w, K)."""
    loss = F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none")
    return loss.view(len(logits), -1).mean(1)
