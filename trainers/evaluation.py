"""How right classifiers are: models from finished runs, their inputs, and counts of their answers.

Letters: N rows, C classes of the model, G classes of the data, H x W grid (tokens).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from services.augment.boxes import centre_boxes
from services.augment.coefficients import channel_spread
from services.errors import FormatError, InvalidInputError
from services.pictures import Picture
from services.plan.epoch import OrderSpec
from services.shards.manifest import load_manifest
from services.shards.reader import find_split
from services.shards.store import open_store
from services.stream.augmentation import codebook_of
from services.stream.opening import open_stream, token_request
from services.stream.pictures import PictureSet, PictureStream
from services.tokens.codebook import Codebook
from services.tokens.dct import DCT
from services.tokens.tokenizer import TokenizerModel
from services.types import BoolArray, IntArray
from services.wire.seit import v1 as wire
from trainers.checkpoint import load_export
from trainers.config import ClassifyRun
from trainers.models.classifier import TokenClassifier
from trainers.models.weights import load_published
from trainers.step import ClassifyTask
from trainers.views import unit_range

_SPEC_FIELDS = ("grid_height", "grid_width", "codes", "channels")
_TOP = 5


@dataclass(frozen=True)
class Classifier:
    """A trained model and what it was trained on.

    url: where it came from. coefficients: whether it reads DCT coefficients rather than codes.
    """

    url: str
    model: TokenClassifier
    spec: wire.TokenSpec
    classes: tuple[str, ...]
    coefficients: bool = False

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width (tokens) of what it reads."""
        return self.model.config.grid

    def inputs(self, rows: Tensor, codebook: Codebook) -> Tensor:
        """What the model reads of a batch's inputs: ids, their vectors, or maps as they are."""
        if rows.is_floating_point() or self.model.config.input == "ids":
            return rows
        # In the 16 bits in which the stream carries them to training and validation.
        return codebook.embed(rows).bfloat16().float()


def load_classifier(url: str, device: torch.device) -> Classifier:
    """The exported model of a finished run of trainers/classify.py, in evaluation mode.

    url: the run's folder, or its .safetensors file.
    Raises: NotFoundError; FormatError for another kind of model, or weights that do not fit.
    """
    tensors, about = load_export(url)
    kind = json.loads(about.get("config", "{}")).get("kind")
    if kind != ClassifyRun.__name__:
        raise FormatError(
            f"{url} holds the model of {kind or 'an unknown kind of run'}, which gives no classes:"
            " name the folder of a finished run of trainers/classify.py"
        )
    try:
        run = TypeAdapter(ClassifyRun).validate_json(about["config"])
        spec = wire.TokenSpec.from_json(about["spec"])
        classes = TypeAdapter(tuple[str, ...]).validate_json(about["classes"])
    except (ValidationError, InvalidInputError, KeyError, ValueError) as error:
        raise FormatError(
            f"{url}: what the model says of itself is not valid ({error}); export it again by the"
            " version of seitpp that trained it"
        ) from error
    model = TokenClassifier(ClassifyTask(run, spec, classes).model_config)
    load_published(model, tensors)
    return Classifier(url, model.eval().to(device), spec, classes, run.augment.coefficients)


def check_alike(classifiers: Sequence[Classifier]) -> None:
    """Raise InvalidInputError unless all were trained on the same tokens and classes."""
    first = classifiers[0]
    for other in classifiers[1:]:
        _check_spec(other.spec, first.spec, other.url, first.url)
        if other.coefficients != first.coefficients:
            raise InvalidInputError(
                f"one of {other.url} and {first.url} reads DCT coefficients, the other codes: rows"
                " are read once for all; evaluate each by itself"
            )
        if other.classes != first.classes:
            raise InvalidInputError(
                f"{other.url} and {first.url} were trained on different classes: one table cannot"
                " compare them; evaluate each by itself"
            )


def _check_spec(found: wire.TokenSpec, wanted: wire.TokenSpec, what: str, whose: str) -> None:
    differing = [
        f"{name} {getattr(found, name)} instead of {getattr(wanted, name)}"
        for name in _SPEC_FIELDS
        if getattr(found, name) != getattr(wanted, name)
    ]
    if differing:
        raise InvalidInputError(
            f"{what} has tokens of another kind than {whose}: {', '.join(differing)}. Answers"
            " would mean nothing; use the data and the tokenizer that the model was trained with"
        )


@dataclass(frozen=True)
class Batch:
    """Rows that exist.

    inputs: (N, H, W) int64 ids of the centre of the grid, or (N, D, H, W) float32 coefficients as
    a model reads them. label: (N,) int64.
    """

    inputs: Tensor
    label: Tensor


@dataclass(frozen=True)
class Rows:
    """What is evaluated on. classes: names of labels. total: rows that there should be.

    open: the rows, each once, in a fixed order.
    """

    classes: tuple[str, ...]
    total: int
    codebook: Codebook
    open: Callable[[], Iterator[Batch]]


def token_rows(
    classifier: Classifier,
    root: str,
    dataset: str,
    split: str,
    version: int | None,
    rows_per_batch: int,
    *,
    whole: bool = False,
) -> Rows:
    """A split of a dataset of tokens.

    whole: give the whole grids instead of their centres.

    Raises: NotFoundError; InvalidInputError where the dataset does not fit the model.
    """
    loaded = load_manifest(open_store(root), dataset, version)
    _check_spec(loaded.spec, classifier.spec, f"dataset {dataset!r}", classifier.url)
    classes = tuple(loaded.manifest.classes)
    if not classes:
        raise InvalidInputError(
            f"dataset {dataset!r} has no classes: nothing says which answers are right; ingest it"
            " with labels, or import it with their names (seit import-release --classes)"
        )
    grid = (loaded.spec.grid_height, loaded.spec.grid_width)
    request = token_request(
        root,
        dataset,
        split,
        _order(rows_per_batch),
        recipe="eval",
        crop=grid if whole else classifier.crop,
        version=loaded.manifest.version,
        sequential=True,
    )
    if classifier.coefficients:
        request = replace(
            request,
            rows=replace(request.rows, coefficients=True),
            recipe=replace(request.recipe, output="embeddings"),
        )

    def batches() -> Iterator[Batch]:
        for batch in open_stream(request):
            there = torch.from_numpy(batch.rows >= 0)
            label = batch.label[there]
            if len(label) and int(label.min()) < 0:
                raise InvalidInputError(
                    f"split {split!r} of dataset {dataset!r} holds rows without a label: no answer"
                    " to them is right or wrong; name a labelled split"
                )
            inputs = batch.inputs.float() if classifier.coefficients else batch.inputs.long()
            yield Batch(inputs[there], label)

    total = sum(shard.rows for shard in find_split(loaded.manifest, split).shards)
    return Rows(classes, total, codebook_of(root, loaded), batches)


Change = Callable[[Tensor, IntArray], Tensor]
"""A corruption: pictures (N, 3, h, w) float32 in [0, 1] and their rows (N,) -> the same shape."""


def picture_rows(
    classifier: Classifier,
    tokenizer: TokenizerModel,
    pictures: Sequence[Picture],
    classes: Sequence[str],
    rows_per_batch: int,
    device: torch.device,
    *,
    name: str = "pictures",
    change: Change | None = None,
    border: int = 0,
) -> Rows:
    """Pictures that are tokenized as they are read; those that cannot be read are left out.

    change: a corruption of the pixels, applied in the tokenizer's size. border: pixels to cut off
    each side of the files first. name: for messages.
    Raises: InvalidInputError where the tokenizer does not fit the model.
    """
    spec = tokenizer.spec
    _check_spec(spec, classifier.spec, "the tokenizer", classifier.url)
    size, grid = (spec.image_height, spec.image_width), (spec.grid_height, spec.grid_width)
    found = PictureSet(name, pictures, size, border=border)
    top, left, height, width = centre_boxes(1, grid, classifier.crop)[0].tolist()
    tokenizer = tokenizer.to(device)
    encode = _encoder(classifier, tokenizer)

    @torch.inference_mode()
    def batches() -> Iterator[Batch]:
        for batch in PictureStream(found, _order(rows_per_batch), sequential=True):
            there = batch.rows >= 0
            images = unit_range(batch.inputs[torch.from_numpy(there)])
            if change is not None:
                images = change(images, batch.rows[there])
            rows = encode(images.to(device))
            cut = rows[..., top : top + height, left : left + width]
            yield Batch(cut, batch.label[torch.from_numpy(there)])

    return Rows(tuple(classes), len(pictures), tokenizer.codebook, batches)


def _encoder(classifier: Classifier, tokenizer: TokenizerModel) -> Callable[[Tensor], Tensor]:
    """Pictures to the whole grids, or maps, that the classifier's stream would hold."""
    if not classifier.coefficients:
        return tokenizer.encode
    if not isinstance(tokenizer, DCT):
        raise InvalidInputError(
            f"{classifier.url} reads DCT coefficients, which a tokenizer of the kind"
            f" {tokenizer.kind} does not make: give the one of trainers/tokenizer_dct.py that its"
            " data was ingested with"
        )
    spread = channel_spread(tokenizer)
    return lambda images: (tokenizer.coefficients(images) / spread).bfloat16().float()


def _order(rows_per_batch: int) -> OrderSpec:
    """Rows are read in stored order: only the size of a step says something."""
    return OrderSpec(0, rows_per_batch, rows_per_batch, 1, 1)


ClassMap = Mapping[str, Sequence[str]]
"""Which of the model's classes are right for a class of the data, by their names."""


def accepted(classes: Sequence[str], known: Sequence[str], by_name: ClassMap | None) -> Tensor:
    """(G, C) bool: whether the answer c is right for rows of the data's class g.

    by_name: None where classes of the data are called as the model's. A class that it leaves out
    accepts nothing, and its rows count nowhere. A name of several of the model's classes (ImageNet
    has two cranes) accepts them all, but where the data's classes are the model's one by one.
    Raises: InvalidInputError for a class that the model does not know.
    """
    if by_name is None and tuple(classes) == tuple(known):
        return torch.eye(len(known), dtype=torch.bool)
    number: dict[str, list[int]] = {}
    for at, name in enumerate(known):
        number.setdefault(name, []).append(at)
    table = torch.zeros(len(classes), len(known), dtype=torch.bool)
    for group, name in enumerate(classes):
        for right in [name] if by_name is None else by_name.get(name, ()):
            if right not in number:
                raise InvalidInputError(
                    f"class {right!r} is none of the model's {len(known)} ({known[0]!r}, ...): its"
                    " rows could never be answered rightly; give a class map from the data's names"
                    " to the model's"
                )
            table[group, number[right]] = True
    if not table.any():
        raise InvalidInputError(
            f"the class map names none of the {len(classes)} classes of the data"
            f" ({classes[0]!r}, ...): no row would count; its keys are their names"
        )
    return table


@dataclass(frozen=True)
class Tally:
    """Counts of answers. right: (G, C), as `accepted` gives it. answers: (G, C) int64, how often
    rows of g were answered by c. top5: (G,) int64, rows with a right answer among the first five.
    """

    classes: tuple[str, ...]
    known: tuple[str, ...]
    right: BoolArray
    answers: IntArray
    top5: IntArray

    @property
    def top1(self) -> IntArray:
        """(G,) int64: rows of g with a right answer first."""
        counts: IntArray = (self.answers * self.right).sum(1)
        return counts

    @property
    def rows(self) -> int:
        """Rows that were counted."""
        return int(self.answers.sum())

    def share(self, right: IntArray) -> float:
        """Share of all rows; NaN where there is none."""
        return float(right.sum()) / self.rows if self.rows else math.nan


@torch.inference_mode()
def count_answers(
    classifiers: Sequence[Classifier],
    rows: Rows,
    device: torch.device,
    *,
    by_name: ClassMap | None = None,
    among_accepted: bool = False,
    told: Callable[[int], None] = lambda rows: None,
) -> list[Tally]:
    """Ask each classifier about every row; a tally each.

    Rows are read, and tokenized, once for all. among_accepted: only classes that some class of the
    data accepts may be answered, as ImageNet-R is scored. told: gets how many rows were done.
    """
    known = classifiers[0].classes
    right_GC = accepted(rows.classes, known, by_name).to(device)
    counted_G, open_C = right_GC.any(1), right_GC.any(0) | (not among_accepted)
    codebook = rows.codebook.to(device)
    groups = len(rows.classes)
    answers = torch.zeros(len(classifiers), groups, len(known), dtype=torch.int64)
    hits = torch.zeros(len(classifiers), groups, dtype=torch.int64)
    for batch in rows.open():
        told(len(batch.label))
        inputs, label = batch.inputs.to(device), batch.label.to(device)
        inputs, label = inputs[counted_G[label]], label[counted_G[label]]
        if not len(label):
            continue
        for number, classifier in enumerate(classifiers):
            logits = (
                classifier.model(classifier.inputs(inputs, codebook))
                .float()
                .masked_fill(~open_C, -math.inf)
            )
            best = logits.topk(min(_TOP, len(known)), dim=1).indices  # (N, <= 5)
            right = right_GC[label].gather(1, best).cpu()  # (N, <= 5)
            place = label.cpu()
            ones = torch.ones(len(place), dtype=torch.int64)
            answers[number].index_put_((place, best[:, 0].cpu()), ones, accumulate=True)
            hits[number].index_add_(0, place, right.any(1).long())
    return [
        Tally(rows.classes, known, right_GC.cpu().numpy(), given.numpy(), five.numpy())
        for given, five in zip(answers, hits, strict=True)
    ]
