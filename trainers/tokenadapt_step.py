"""What a step of TokenAdapt's training computes (paper, section 3.3.2, equations 2 and 3)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.augment.tokenadapt import TokenAdapt, TokenAdaptConfig, codebook_digest
from services.errors import InvalidInputError
from services.shards.store import open_store, read_as
from services.stream.batch import StreamBatch
from services.tokens.tokenizer import TokenizerModel, load_tokenizer
from trainers.config import refuse_deterministic_gpu
from trainers.context import Place
from trainers.loop import train
from trainers.picture_config import TokenAdaptRun
from trainers.picture_streams import check_pictures, open_pictures
from trainers.reports import strict_json
from trainers.task import PlainTask
from trainers.tokenadapt_compare import Comparison, Pairs, report
from trainers.views import unit_range

TOKENADAPT = "tokenadapt.safetensors"
"""File of a finished run: f and g as `TokenAdapt.from_bytes` reads them."""
REPORT = "report.json"
"""File of a finished run: for each operation and method, agreement, PSNR and speed."""


def tokenadapt_worker(config: TokenAdaptRun, place: Place) -> dict[str, float]:
    """One worker of TokenAdapt's run."""
    tokenizer = read_as(config.tokenizer, load_tokenizer)
    context = open_pictures(config, place, tokenizer.spec)
    return train(config, context, TokenAdaptTask(config, tokenizer, place.device))


def prepare_tokenadapt(run: TokenAdaptRun) -> TokenAdaptRun:
    """As `check_pictures`; refuses what a GPU cannot compute alike each time, and a tokenizer that
    cannot be read or does not fit."""
    refuse_deterministic_gpu(run)
    checked = check_pictures(run)
    tokenizer = read_as(checked.tokenizer, load_tokenizer)
    TokenAdaptTask(checked, tokenizer, torch.device("cpu"))
    return checked


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
        self._digest = codebook_digest(tokenizer.codebook.weight)
        self._comparison = Comparison(
            tokenizer,
            out_grid,
            config.views,
            seed=config.loop.seed,
            block=config.order.block,
            device=device,
        )
        self.figures = ("loss", *self._comparison.figures)

    def build_model(self, *, fresh: bool) -> Pairs:
        """Starts from nothing, whether `fresh` or not."""
        adapt = TokenAdapt(self.model_config, self._digest)
        adapt.start_for(self._comparison.codebook.weight.cpu())
        return Pairs(adapt)

    def check(self, batch: StreamBatch) -> None:
        """Any picture can be learned from; streams leave out what is none."""

    def loss(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        images = unit_range(batch.inputs)
        scale = self.model_config.scale
        cells = (self.model_config.grid[0] * scale, self.model_config.grid[1] * scale)
        return (self._losses(model, images, batch, batch.epoch, cells) * batch.weight).sum()

    def evaluate(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        images = unit_range(batch.inputs)
        losses = self._losses(model, images, batch, 0, self.model_config.grid)
        compared = self._comparison.measure(model, images, batch.rows)
        return (torch.cat([losses[None], compared]) * batch.weight).sum(1)

    def validated(self, world: int) -> Mapping[str, float]:
        """Pictures a second of each operation and method."""
        return self._comparison.speeds(world)

    def export(self, model: nn.Module, out: str, figures: Mapping[str, float]) -> None:
        assert isinstance(model, Pairs)
        store = open_store(out)
        store.write(TOKENADAPT, model.adapt.to_bytes())
        mark = "validation_"
        found = {n.removeprefix(mark): v for n, v in figures.items() if n.startswith(mark)}
        store.write(REPORT, strict_json(report(found), indent=2).encode())

    def _losses(
        self,
        model: nn.Module,
        images: Tensor,
        batch: StreamBatch,
        epoch: int,
        cells: tuple[int, int],
    ) -> Tensor:
        """(N,) equation 3 of each row, for the operations as strong and as often as configured."""
        views = self._comparison.views(self._config.views, batch.rows, epoch, cells)
        pair = self._comparison.pair(images, views)
        return _cross_entropy(model(pair.emb, views), pair.wanted)


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """(N,) equation 3, in nats: mean over a row's tokens. logits: (N, h*w, K)."""
    loss = F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none")
    return loss.view(len(logits), -1).mean(1)
