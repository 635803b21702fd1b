"""What a step computes: masked token modelling, and classification with soft targets.

Also the worker functions that `launch` runs: they live here, in a module that Ray can import,
as the programs themselves are scripts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.augment.recipe import RECIPES
from services.errors import FormatError, InvalidInputError
from services.plan.draws import Draws
from services.stream.batch import StreamBatch
from services.tokens.devices import on_device
from services.wire.seit import v1 as wire
from trainers.checkpoint import checkpoint_steps, load_weights
from trainers.config import ClassifyRun, MtmRun
from trainers.context import Place
from trainers.loop import train
from trainers.models.classifier import (
    ClassifierConfig,
    TokenClassifier,
    right_answers,
    soft_cross_entropy,
)
from trainers.models.mtm import MTM, MaskRatio, Masks, MTMConfig, sample_masks
from trainers.models.sizes import ViTSize
from trainers.models.weights import transfer
from trainers.streams import ALONE, open_context, refuse_unlabelled, settle
from trainers.task import PlainTask

_VALIDATION_RATIO_DRAW = 0.5
"""Validation masks the median share of patches, the same ones each time."""


def mtm_worker(config: MtmRun, place: Place) -> dict[str, float]:
    """One worker of a pre-training run."""
    context = open_context(config, place)
    return train(config, context, MtmTask(config, context.spec))


def classify_worker(config: ClassifyRun, place: Place) -> dict[str, float]:
    """One worker of a classifier's run."""
    context = open_context(config, place)
    return train(config, context, ClassifyTask(config, context.spec, context.classes))


def prepare_mtm(config: MtmRun) -> MtmRun:
    """The run as `settle` gives it; a model that its data cannot feed is refused."""
    settled = settle(config)
    MtmTask(settled, open_context(settled, ALONE).spec)
    return settled


def prepare_classify(config: ClassifyRun) -> ClassifyRun:
    """The run as `settle` gives it; refuses what would only fail later, on a worker.

    That is: rows without labels, and a model to start from that does not fit.
    """
    settled = settle(config)
    context = open_context(settled, ALONE)
    task = ClassifyTask(settled, context.spec, context.classes)
    refuse_unlabelled(settled)
    if settled.model.init and not checkpoint_steps(settled.out):
        task.build_model(fresh=True)
    return settled


class MtmTask(PlainTask):
    """Pre-training: recover masked tokens (paper, section 3.2).

    Masks are keyed by row, and a step's ratio by step: no number of workers changes them.
    """

    name = "mtm"
    figures = ("loss", "accuracy")
    best = "loss"
    higher = False

    def __init__(self, config: MtmRun, spec: wire.TokenSpec) -> None:
        self._config = config
        model, crop = config.model, config.augment.crop
        self.model_config = MTMConfig(
            grid=(crop, crop),
            codes=spec.codes,
            channels=spec.channels,
            encoder=model.encoder,
            decoder=ViTSize(model.decoder_width, model.decoder_depth, model.decoder_heads),
            patch=model.patch,
            token_dropout=model.dropout,
            decoder_dropout=model.dropout,
            smoothing=config.optim.smoothing,
            ratio=MaskRatio(model.mask_mean, model.mask_std, model.mask_min, model.mask_max),
        )

    def build_model(self, *, fresh: bool) -> MTM:
        """Pre-training starts from nothing, whether `fresh` or not."""
        return MTM(self.model_config)

    def check(self, batch: StreamBatch) -> None:
        """Pre-training needs no labels; the model itself refuses another grid."""

    def loss(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        step = Draws(self._config.loop.seed, 0, np.array([batch.step], np.int64))
        masks = self._masks(batch, float(step.uniform("mask.ratio")[0, 0]))
        rows: Tensor = model(batch.inputs, *masks).loss
        return (rows * batch.weight).sum()

    def evaluate(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        masks = self._masks(batch, _VALIDATION_RATIO_DRAW)
        out = model(batch.inputs, *masks)
        patch = self.model_config.patch
        hidden = masks.mask.view(-1, *self.model_config.patches)  # (N, H/p, W/p)
        hidden = hidden.repeat_interleave(patch, 1).repeat_interleave(patch, 2).flatten(1)  # (N, T)
        right = (out.logits.argmax(2) == batch.inputs.flatten(1)) & hidden
        accuracy = right.sum(1) / hidden.sum(1)
        return (torch.stack([out.loss, accuracy]) * batch.weight).sum(1)

    def _masks(self, batch: StreamBatch, ratio_draw: float) -> Masks:
        draws = Draws(self._config.loop.seed, batch.row_epochs, batch.rows)
        noise = torch.from_numpy(draws.uniform("mask", self.model_config.patch_count))  # (N, P)
        return sample_masks(on_device(noise, batch.inputs.device), ratio_draw, self.model_config)


class ClassifyTask(PlainTask):
    """Classification with label smoothing and the soft targets of Mixup and CutMix.

    Raises: InvalidInputError for a dataset without classes, or an MTM model that does not fit.
    """

    name = "classify"
    figures = ("loss", "top1", "top5")
    best = "top1"
    higher = True

    def __init__(self, config: ClassifyRun, spec: wire.TokenSpec, classes: Sequence[str]) -> None:
        if not classes:
            raise InvalidInputError(
                f"dataset {config.data.dataset!r} has no classes: there is nothing to classify;"
                " ingest it with labels, or import it with their names (seit import-release"
                " --classes), or pre-train on it with trainers/mtm.py"
            )
        self._config, self._spec = config, spec
        crop = (config.augment.crop, config.augment.crop)
        self.model_config = ClassifierConfig(
            input=RECIPES[config.augment.recipe](spec, crop).output,
            grid=crop,
            codes=spec.codes,
            channels=spec.channels,
            classes=len(classes),
            encoder=config.model.encoder,
            patch=config.model.patch,
            token_dropout=config.model.dropout,
            drop_path=config.model.drop_path,
        )

    def build_model(self, *, fresh: bool) -> TokenClassifier:
        """Starts from `model.init`, where that is given and `fresh`."""
        model = TokenClassifier(self.model_config)
        if fresh and self._config.model.init:
            start_from(model, self._config.model.init, self._config.model.resize_positions)
        return model

    def check(self, batch: StreamBatch) -> None:
        classes = self.model_config.classes
        low, high = torch.aminmax(torch.stack([batch.label, batch.label_b]) * (batch.weight > 0))
        if low < 0 or high >= classes:
            raise InvalidInputError(
                f"step {batch.step} holds label {int(low if low < 0 else high)}, valid are"
                f" 0..{classes - 1}: rows without a label cannot teach a classifier; ingest them"
                " with labels, or leave them out of the split"
            )

    def loss(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        logits = model(batch.inputs)
        rows = soft_cross_entropy(
            logits, batch.label, batch.label_b, batch.mix, self._config.optim.smoothing
        )
        return (rows * batch.weight).sum()

    def evaluate(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        logits = model(batch.inputs).float()
        loss = F.cross_entropy(logits, batch.label, reduction="none")
        figures = torch.stack([loss, *right_answers(logits, batch.label)])  # (3, N)
        return (figures * batch.weight).sum(1)


def start_from(model: TokenClassifier, url: str, resize_positions: bool = False) -> None:
    """Give the classifier the encoder of another model, and a new head.

    url: folder of a finished run, a .safetensors file, or a checkpoint of the published code.
    Raises: NotFoundError; FormatError, naming the file, where the two do not fit.
    """
    tensors = load_weights(url)
    theirs, ours = (state.get("pos_embed") for state in (tensors, model.state_dict()))
    if not resize_positions and theirs is not None and ours is not None:
        patches, wanted = theirs.shape[-2] - 1, ours.shape[-2] - 1
        if patches != wanted:
            raise FormatError(
                f"model.init {url} was trained on {patches} patches, this model has {wanted}"
                f" {model.config.patches}: nothing was loaded; choose --augment.crop and"
                " --model.patch to fit, or have its positions resized (--model.resize-positions)"
            )
    try:
        transfer(model, tensors)
    except FormatError as error:
        raise FormatError(f"model.init {url}: {error}") from error
