"""How consistently pictures are classified by models that never saw them: an estimate of C-scores.

    python trainers/consistency.py --model runs/half-0a runs/half-0b ... --out consistency

The C-score of a picture is the chance that a model which was trained on a random part of the data
without it classifies it rightly (Jiang et al., 2020). Here it is estimated by pixel classifiers
(`trainers/classify_pixels.py`), each trained on a part of the training split (`--pictures.keys`):
every model judges the pictures that it did not train on. Jiang et al. average over parts of several
sizes and 2,000 models; an estimate from a few models is coarser, so pictures that as many models
got right are told apart by the mean probability of their class.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from services.errors import FormatError, InvalidInputError
from services.gallery.sheet import literal
from services.pictures import Picture, read_picture
from services.plan.epoch import OrderSpec
from services.shards.store import absolute_url, open_store, read_url
from services.stream.pictures import PictureSet, PictureStream
from services.types import FloatArray, IntArray
from trainers.charts import COLOURS, save_figure
from trainers.data_config import require
from trainers.picture_config import PicturesConfig, PixelRun
from trainers.picture_streams import TRAIN, split_pictures
from trainers.picture_subsets import read_keys
from trainers.pixel_step import centre, load_pixel_classifier
from trainers.program import program
from trainers.reports import as_text
from trainers.views import unit_range

logger = logging.getLogger(__name__)

SCORES = "consistency.parquet"
"""The scores: key, label, models (that judged it), consistency, probability."""
_SHOWN = 8  # pictures at each end, in the picture


@dataclass(frozen=True)
class ConsistencyConfig:
    """Score each training picture by models that were trained without it."""

    model: tuple[str, ...]
    """Folders of finished runs of trainers/classify_pixels.py with --pictures.keys, on one folder
    of pictures; together they must leave out every picture once at least."""
    out: Path
    """Folder for consistency.parquet and consistency.png."""
    batch: int = 64
    """Pictures that are computed at a time (count)."""

    def __post_init__(self) -> None:
        require(bool(self.model), "model", self.model, "at least one run")
        require(self.batch >= 1, "batch", self.batch, "at least 1")


@dataclass(frozen=True)
class Scores:
    """What models say of the training pictures. Arrays: (N,).

    models: how many judged each. right: how many of these rightly. probability: mean of what they
    gave its class.
    """

    pictures: Sequence[Picture]
    models: IntArray
    right: IntArray
    probability: FloatArray

    @property
    def consistency(self) -> FloatArray:
        """Share of the models that were right."""
        return (self.right / self.models).astype(np.float32)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the scores stand, 2 after an error of ours, 130 when interrupted."""
    return program(ConsistencyConfig, consistency, argv, description=__doc__)


def consistency(config: ConsistencyConfig) -> None:
    """Write OUT/consistency.parquet and .png, and log the table. Raises: SeitError."""
    classes, scores = measure(config)
    place = open_store(absolute_url(str(config.out)))
    table = pa.table(
        {
            "key": [picture.key for picture in scores.pictures],
            "label": np.array([picture.label for picture in scores.pictures], np.int64),
            "models": scores.models,
            "consistency": scores.consistency,
            "probability": scores.probability,
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    place.write(SCORES, sink.getvalue().to_pybytes())
    logger.info("%s", as_text(_table(classes, scores)))
    logger.info("written: %s", config.out / SCORES)
    logger.info("written: %s", _draw(classes, scores, config.out / "consistency.png"))


def measure(config: ConsistencyConfig) -> tuple[Sequence[str], Scores]:
    """(classes, scores of all pictures of the training split).

    Raises: NotFoundError, FormatError; InvalidInputError where models belong to other pictures, or
    leave out none, or some picture was seen by all.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = [(url, *load_pixel_classifier(absolute_url(url), device)) for url in config.model]
    first = _source(loaded[0][2])
    for url, _, run, _ in loaded:
        if not run.pictures.keys or _source(run) != first:
            raise InvalidInputError(
                f"{url} was trained on {run.pictures}, the first model on {first}: all must be of"
                " one folder and split, and each of a part of it (--pictures.keys)"
            )
    classes, splits = split_pictures(first)
    pictures = splits[TRAIN]
    seen = np.stack(
        [
            np.array([picture.key in keys for picture in pictures])
            for keys in (set(read_keys(run.pictures.keys)) for _, _, run, _ in loaded)
        ]
    )  # (models, N)
    models = (~seen).sum(0)
    if not models.all():
        raise InvalidInputError(
            f"{int((models == 0).sum())} of {len(pictures)} pictures were trained on by all"
            f" {len(loaded)} models ({pictures[int(models.argmin())].key}, ...): nothing says how"
            " consistent they are; train on complementary parts"
        )
    right, probability = np.zeros(len(pictures), np.int64), np.zeros(len(pictures))
    console = Console(file=sys.stderr)
    bar = track(range(len(loaded)), "models", console=console, disable=not console.is_terminal)
    for number in bar:
        _, model, run, _ = loaded[number]
        rows = np.flatnonzero(~seen[number])
        given = _probabilities(model, run, [pictures[row] for row in rows], config.batch, device)
        right[rows] += given[0]
        probability[rows] += given[1]
    return classes, Scores(pictures, models, right, (probability / models).astype(np.float32))


def _source(run: PixelRun) -> PicturesConfig:
    """The folder and its split, without the part that was trained on."""
    pictures = run.pictures
    return PicturesConfig(pictures.images, pictures.validation_fraction, pictures.seed)


@torch.inference_mode()
def _probabilities(
    model: torch.nn.Module,
    run: PixelRun,
    pictures: Sequence[Picture],
    batch: int,
    device: torch.device,
) -> tuple[IntArray, FloatArray]:
    """(n,) whether each picture is classified rightly, and (n,) probability of its class.

    A picture that cannot be read is wrong, with probability 0.
    """
    size = (run.model.image_size, run.model.image_size)
    right, given = np.zeros(len(pictures), np.int64), np.zeros(len(pictures), np.float32)
    order = OrderSpec(0, batch, batch, 1, 1)
    found = PictureSet("held out", pictures, size)
    for read in PictureStream(found, order, sequential=True):
        there = read.rows >= 0
        inputs = read.inputs[torch.from_numpy(there)].to(device)
        label = read.label[torch.from_numpy(there)].to(device)
        logits = model(centre(unit_range(inputs), run.model.crop)).float()
        rows = read.rows[there]
        right[rows] = (logits.argmax(1) == label).cpu().numpy()
        given[rows] = logits.softmax(1).gather(1, label[:, None])[:, 0].cpu().numpy()
    return right, given


def read_scores(url: str) -> dict[str, tuple[float, float]]:
    """By key: (consistency, probability), of which more is more consistent.

    Raises: NotFoundError; FormatError for a file of another kind.
    """
    try:
        table = pq.read_table(pa.BufferReader(read_url(url)))
        columns = (table[name].to_pylist() for name in ("key", "consistency", "probability"))
    except (pa.ArrowException, KeyError) as error:
        raise FormatError(
            f"{url} holds no scores ({error}): name the {SCORES} of trainers/consistency.py"
        ) from error
    return {key: (share, given) for key, share, given in zip(*columns, strict=True)}


def _table(classes: Sequence[str], scores: Scores) -> Table:
    table = Table("class", "pictures", "mean consistency", title="held-out consistency")
    labels = np.array([picture.label for picture in scores.pictures])
    means = np.array([scores.consistency[labels == label].mean() for label in range(len(classes))])
    for label in np.argsort(means)[:10]:
        count = int((labels == label).sum())
        table.add_row(classes[label], f"{count:,}", f"{means[label]:.1%}")
    table.add_section()
    table.add_row("all", f"{len(labels):,}", f"{scores.consistency.mean():.1%}")
    return table


def _draw(classes: Sequence[str], scores: Scores, path: Path) -> Path:
    """How scores are spread, and the pictures at both ends."""
    figure = Figure(figsize=(9, 4.6))
    grid = figure.add_gridspec(3, _SHOWN, height_ratios=(1.6, 1, 1))
    axis = figure.add_subplot(grid[0, :])
    axis.hist(scores.probability, bins=40, range=(0, 1), color=COLOURS[0])
    axis.set_xlabel("mean probability of the true class, by models that did not train on it")
    axis.set_ylabel("pictures")
    axis.spines[["top", "right"]].set_visible(False)
    order = np.lexsort((scores.probability, scores.right / scores.models))
    for line, (title, rows) in enumerate(
        (("most consistent", order[::-1]), ("least consistent", order)), start=1
    ):
        for place, row in enumerate(rows[:_SHOWN].tolist()):
            picture = scores.pictures[row]
            axis = figure.add_subplot(grid[line, place])
            axis.set_axis_off()
            name = classes[picture.label]
            axis.set_title(f"{literal(name[:12])}: {scores.probability[row]:.2f}", fontsize=7)
            try:
                axis.imshow(read_picture(picture.path, 64, 64).transpose(1, 2, 0))
            except InvalidInputError:
                axis.text(0.5, 0.5, "unreadable", ha="center", fontsize=7)
            if place == 0:
                axis.text(-0.1, 1.35, title, transform=axis.transAxes, fontsize=9, weight="bold")
    return save_figure(figure, path)


if __name__ == "__main__":
    raise SystemExit(main())
