"""What a step of a segmentation computes, and how good the model is: mIoU over whole pictures."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.errors import FormatError, InvalidInputError
from services.shards.manifest import load_manifest, read_asset
from services.shards.store import open_store
from services.stream.batch import StreamBatch
from services.tokens.tokenizer import TokenizerModel, load_tokenizer
from services.types import IGNORED
from services.wire.seit import v1 as wire
from trainers.checkpoint import checkpoint_steps, load_weights
from trainers.config import refuse_deterministic_gpu
from trainers.context import Place
from trainers.loop import train
from trainers.models.classifier import ClassifierConfig
from trainers.models.segmenter import SegmenterConfig, TokenSegmenter, enlarged, even_depths
from trainers.ranks import sum_over_ranks
from trainers.reports import read_json, strict_json
from trainers.segment_config import SegmentRun
from trainers.segment_pictures import draw_predictions
from trainers.streams import ALONE, open_context, settle
from trainers.task import PlainTask

logger = logging.getLogger(__name__)

PREDICTIONS = "predictions.png"
"""File of a finished run: pictures of the validation split, their masks, and the model's."""
REPORT = "report.json"
"""File of a finished run: its last figures, and the IoU of each class by name; by name and number
where several classes have one name; `pictures`: how many drawn ones were asked for."""


def segment_worker(config: SegmentRun, place: Place) -> dict[str, float]:
    """One worker of a segmentation's run."""
    context = open_context(config, place)
    return train(config, context, SegmentTask(config, context.spec, context.classes))


def settle_segment(run: SegmentRun) -> SegmentRun:
    """As `trainers.streams.settle`; the model's sizes, and what it starts from, are refused here,
    too."""
    refuse_deterministic_gpu(run)
    settled = settle(run)
    context = open_context(settled, ALONE)
    task = SegmentTask(settled, context.spec, context.classes)
    if settled.model.init and not checkpoint_steps(settled.out):
        task.build_model(fresh=True)
    return settled


class _Shown(NamedTuple):
    """Rows of the validation, in the memory of the host.

    inputs: (n, H, W) ids or (n, D, H, W) embeddings. truth, prediction: (n, h, w) uint8.
    """

    inputs: Tensor
    truth: Tensor
    prediction: Tensor


class SegmentTask(PlainTask):
    """A class for each pixel (paper, 4.3): cross-entropy of UperNet's head and of the plain one.

    A row's loss is the sum over its pixels that have a class, divided by all its pixels, as in
    mmsegmentation. IoU is counted in pixels over the whole validation split, each row once;
    classes that occur neither in masks nor in predictions do not take part in the mean.
    """

    name = "segment"
    figures = ("loss",)
    best = "miou"
    higher = True

    def __init__(self, config: SegmentRun, spec: wire.TokenSpec, classes: Sequence[str]) -> None:
        self._config, self._spec, self._classes = config, spec, tuple(classes)
        model, crop = config.model, config.augment.crop
        grid = spec.grid_height, spec.grid_width
        if (crop, crop) != grid:
            raise InvalidInputError(
                f"augment.crop is {crop}, the pictures of {config.data.dataset!r} are"
                f" {grid[0]}x{grid[1]} tokens: segmentation reads whole, square pictures, on which"
                f" mIoU is defined; set it to {grid[0]}, or ingest square pictures"
            )
        encoder = model.encoder
        self.model_config = SegmenterConfig(
            encoder=ClassifierConfig(
                input=model.input,
                grid=grid,
                codes=spec.codes,
                channels=spec.channels,
                classes=max(1, len(classes)),
                encoder=encoder,
                patch=model.patch,
                token_dropout=model.dropout,
                drop_path=model.drop_path,
            ),
            depths=even_depths(encoder.depth),
            pixels=(spec.image_height // grid[0], spec.image_width // grid[1]),
            decoder=model.decoder_width,
            auxiliary=model.auxiliary_width,
            dropout=model.head_dropout,
        )
        self._confusion = self._nothing_counted()
        self._shown: list[_Shown] = []
        self._last: list[_Shown] = []
        self._by_class: dict[str, float] | None = None

    def build_model(self, *, fresh: bool) -> TokenSegmenter:
        """The segmenter, with the encoder of another run, where that is given and `fresh`."""
        model, init = TokenSegmenter(self.model_config), self._config.model.init
        if fresh and init:
            tensors = load_weights(init)
            try:
                model.start_from(tensors)
            except FormatError as error:
                raise FormatError(f"model.init {init}: {error}") from error
        return model

    def check(self, batch: StreamBatch) -> None:
        if batch.mask is None:
            raise InvalidInputError(f"step {batch.step} came without masks: nothing to learn from")

    def loss(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        logits, auxiliary = model(batch.inputs)
        rows = self._rows(enlarged(logits, self.model_config.size), batch)
        weight = self._config.model.auxiliary_weight
        if weight:
            further = weight * self._rows(enlarged(auxiliary, self.model_config.size), batch)
        else:  # DDP waits for a gradient of each weight, if only of zeros
            further = 0.0 * auxiliary.flatten(1).mean(1)
        return ((rows + further) * batch.weight).sum()

    def evaluate(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        logits = enlarged(model(batch.inputs)[0], self.model_config.size)
        prediction = logits.argmax(1)
        truth = self._truth(batch)
        counts = confusion(truth, prediction, self.model_config.encoder.classes)
        self._confusion = self._confusion.to(counts.device) + counts
        wanted = self._config.pictures - sum(len(part.truth) for part in self._shown)
        there = batch.weight.nonzero()[:, 0][: max(0, wanted)]
        if len(there):
            kept = (batch.inputs[there], truth[there], prediction[there])
            inputs, *masks = (value.cpu() for value in kept)
            self._shown.append(_Shown(inputs, *(mask.to(torch.uint8) for mask in masks)))
        return (self._rows(logits, batch) * batch.weight).sum()[None]

    def validated(self, world: int) -> Mapping[str, float]:
        """Mean IoU, and the share of pixels that are right."""
        counts = sum_over_ranks(self._confusion, world)
        right, either = counts.diag(), counts.sum(0) + counts.sum(1) - counts.diag()
        each = (right.double() / either.clamp(min=1)).tolist()
        occurs = (either > 0).tolist()
        self._by_class = {
            name: value
            for name, value, there in zip(_told_apart(self._classes), each, occurs, strict=False)
            if there
        }
        mean = sum(self._by_class.values()) / max(1, len(self._by_class))
        accuracy = float(right.sum() / counts.sum().clamp(min=1))
        self._confusion = self._nothing_counted()
        self._last, self._shown = self._shown, []
        return {"miou": mean, "pixel_accuracy": accuracy}

    def lacks(self, out: str) -> bool:
        store, wanted = open_store(out), self._config.pictures
        if self._by_class is not None:
            return False
        if not store.exists(REPORT) or not (store.exists(PREDICTIONS) or not wanted):
            return True
        return bool(wanted) and read_json(store, REPORT).get("pictures") != wanted

    def export(self, model: nn.Module, out: str, figures: Mapping[str, float]) -> None:
        if self._by_class is None:  # finished before, and what is written here stands
            return
        store = open_store(out)
        report = {**figures, "pictures": self._config.pictures, "iou": self._by_class}
        store.write(REPORT, strict_json(report, indent=2).encode())
        if not self._last:
            return
        parts = zip(*self._last, strict=True)
        inputs, truth, prediction = (torch.cat(list(part)) for part in parts)
        pictures = self._decoded(inputs)
        drawn = draw_predictions(
            None if pictures is None else pictures.numpy(),
            truth.numpy(),
            prediction.numpy(),
            self._classes,
        )
        store.write(PREDICTIONS, drawn)

    def _nothing_counted(self) -> Tensor:
        classes = self.model_config.encoder.classes
        return torch.zeros(classes, classes, dtype=torch.int64)

    def _rows(self, logits: Tensor, batch: StreamBatch) -> Tensor:
        """(N,) cross-entropy, in nats, mean over a row's pixels, with 0 for those of no class."""
        losses = F.cross_entropy(logits, self._truth(batch), ignore_index=IGNORED, reduction="none")
        return losses.flatten(1).mean(1)

    def _truth(self, batch: StreamBatch) -> Tensor:
        """(N, h, w) int64; rows that do not exist have no class anywhere."""
        assert batch.mask is not None
        there = batch.weight[:, None, None] > 0
        return torch.where(there, batch.mask, IGNORED).long()

    @torch.no_grad()
    def _decoded(self, inputs: Tensor) -> Tensor | None:
        """(n, 3, h, w) in [0, 1], by the tokenizer that stands with the dataset, if one does."""
        tokenizer = self._tokenizer()
        if tokenizer is None:
            return None
        ids = tokenizer.codebook.quantise(inputs.float()) if inputs.ndim == 4 else inputs
        return tokenizer.decode(ids)

    def _tokenizer(self) -> TokenizerModel | None:
        data = self._config.data
        root = open_store(data.root)
        manifest = load_manifest(root, data.dataset, data.version).manifest
        for asset in manifest.assets:
            if asset.kind == "tokenizer":
                return load_tokenizer(read_asset(root, data.dataset, asset))
        logger.info("dataset %r has no tokenizer: predictions are drawn alone", data.dataset)
        return None


def _told_apart(names: Sequence[str]) -> list[str]:
    """The names, with its number behind each that several classes have."""
    return [
        name if names.count(name) == 1 else f"{name} ({number})"
        for number, name in enumerate(names)
    ]


def confusion(truth: Tensor, prediction: Tensor, classes: int) -> Tensor:
    """(classes, classes) int64, truth first: pixels of each pair; those without a class count not.

    Without weights `bincount` is exact and the same every time, and needs the memory of the pixels
    alone, in deterministic mode, too.
    """
    known = truth != IGNORED
    pairs = truth[known] * classes + prediction[known]
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)
