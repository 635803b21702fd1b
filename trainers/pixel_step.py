"""What a step of the pixel classifier computes: ordinary augmentation, then as for tokens.

It is what token classifiers are compared with (paper, Table 1): the same transformer, loop and
recipes, on pictures instead of their tokens. Draws are keyed by row, as those of tokens are.

Letters: N rows, H x W pixels of a picture as it is read, h x w of the crop.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from services.augment.boxes import RESIZED_DRAWS, centre_boxes, resized_boxes
from services.augment.choices import choose_mix
from services.augment.crop import resize_crop, window
from services.augment.mix import mixup, paste
from services.errors import FormatError, InvalidInputError
from services.plan.draws import Draws
from services.stream.batch import StreamBatch
from services.tokens.devices import on_device
from services.types import IntArray
from services.wire.seit import v1 as wire
from trainers.checkpoint import load_export
from trainers.context import Place
from trainers.loop import train
from trainers.models.classifier import (
    ClassifierConfig,
    TokenClassifier,
    right_answers,
    soft_cross_entropy,
)
from trainers.models.weights import load_published
from trainers.picture_config import PixelModelConfig, PixelRun
from trainers.picture_streams import open_pictures
from trainers.task import PlainTask
from trainers.views import unit_range

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels, as in DeiT


def pixel_worker(config: PixelRun, place: Place) -> dict[str, float]:
    """One worker of a pixel classifier's run."""
    side = config.model.image_size
    spec = wire.TokenSpec(image_height=side, image_width=side)  # no tokens: the size alone
    context = open_pictures(config, place, spec)
    return train(config, context, PixelTask(config, context.classes))


class PixelTask(PlainTask):
    """Classification of pictures with label smoothing and the soft targets of Mixup and CutMix."""

    name = "classify pixels"
    figures = ("loss", "top1", "top5")
    best = "top1"
    higher = True

    def __init__(self, config: PixelRun, classes: Sequence[str]) -> None:
        self._config = config
        self.model_config = model_config(config.model, len(classes))

    def build_model(self, *, fresh: bool) -> TokenClassifier:
        """Starts from nothing, whether `fresh` or not."""
        return TokenClassifier(self.model_config)

    def check(self, batch: StreamBatch) -> None:
        """Every picture lies in the folder of its class; streams leave out what is none."""

    def loss(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        with torch.autocast(batch.inputs.device.type, enabled=False):
            images, partner, share = self.augmented(
                unit_range(batch.inputs), batch.rows, batch.epoch
            )
        logits, label = model(normalised(images)), batch.label.clamp(min=0)  # -1: no such row
        rows = soft_cross_entropy(
            logits, label, label[partner], share, self._config.optim.smoothing
        )
        return (rows * batch.weight).sum()

    def evaluate(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        logits = model(centre(unit_range(batch.inputs), self._config.model.crop)).float()
        label = batch.label.clamp(min=0)  # -1: no such row
        loss = F.cross_entropy(logits, label, reduction="none")
        figures = torch.stack([loss, *right_answers(logits, label)])  # (3, N)
        return (figures * batch.weight).sum(1)

    def augmented(
        self, images: Tensor, rows: IntArray, epoch: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3, H, W) -> pictures (N, 3, h, w), partners (N,) and shares of the own label (N,).

        Rows are mixed inside their block.
        """
        config, side, device = self._config.augment, self._config.model.crop, images.device
        draws, size = Draws(self._config.loop.seed, epoch, rows), (side, side)
        crop = config.crop()
        drawn = draws.uniform("pixel.crop", RESIZED_DRAWS)
        grid = (images.shape[2], images.shape[3])
        boxes = torch.from_numpy(resized_boxes(drawn, grid, crop.area, crop.aspect))
        flip = torch.from_numpy(draws.uniform("pixel.flip")[:, 0] < config.flip_probability)
        cut = resize_crop(images, on_device(boxes, device), size)
        flip = on_device(flip, device)[:, None, None, None]
        cut = torch.where(flip, cut.flip(3), cut).clamp(0, 1)
        block = self._config.order.block
        found = [
            (start, choose_mix(config.mix(), draws.take(slice(start, start + block)), "mix", size))
            for start in range(0, len(rows), block)
        ]

        def joined(name: str) -> Tensor:
            values = np.concatenate([getattr(choice, name) for _, choice in found])
            return on_device(torch.from_numpy(values), device)

        partner = torch.cat([torch.from_numpy(choice.partner + at) for at, choice in found])
        partner = on_device(partner, device)
        mixed = mixup(cut, cut[partner], joined("weight"))
        return paste(mixed, cut[partner], joined("boxes")), partner, joined("share")


def model_config(model: PixelModelConfig, classes: int) -> ClassifierConfig:
    """Sizes of the network."""
    return ClassifierConfig(
        input="pixels",
        grid=(model.crop, model.crop),
        codes=0,
        channels=3,
        classes=classes,
        encoder=model.encoder,
        patch=model.patch,
        drop_path=model.drop_path,
    )


def normalised(images: Tensor) -> Tensor:
    """(N, 3, h, w) in [0, 1] -> the same with ImageNet's mean 0 and deviation 1."""
    mean, std = (
        on_device(torch.tensor(values, dtype=images.dtype).view(3, 1, 1), images.device)
        for values in (_MEAN, _STD)
    )
    return (images - mean) / std


def centre(images: Tensor, side: int) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> the centre, (N, 3, side, side), as the model reads it."""
    size = (images.shape[2], images.shape[3])
    boxes = torch.from_numpy(centre_boxes(len(images), size, (side, side)))
    return normalised(window(images, on_device(boxes, images.device), (side, side)))


def load_pixel_classifier(
    url: str, device: torch.device
) -> tuple[TokenClassifier, PixelRun, tuple[str, ...]]:
    """(model in evaluation mode, its run, its classes) of a finished run.

    Raises: NotFoundError; FormatError for another kind of model, or weights that do not fit.
    """
    tensors, about = load_export(url)
    kind = json.loads(about.get("config", "{}")).get("kind")
    if kind != PixelRun.__name__:
        raise FormatError(
            f"{url} holds the model of {kind or 'an unknown kind of run'}, which reads no pixels:"
            " name the folder of a finished run of trainers/classify_pixels.py"
        )
    try:
        run = TypeAdapter(PixelRun).validate_json(about["config"])
        classes = TypeAdapter(tuple[str, ...]).validate_json(about["classes"])
    except (ValidationError, InvalidInputError, KeyError) as error:
        raise FormatError(
            f"{url}: what the model says of itself is not valid ({error}); export it again by the"
            " version of seitpp that trained it"
        ) from error
    model = TokenClassifier(model_config(run.model, len(classes)))
    load_published(model, tensors)
    return model.eval().to(device), run, classes
