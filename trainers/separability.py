"""How well classes lie apart in a classifier's last features: `python trainers/separability.py`.

The features before the head are drawn in two dimensions, and a linear probe that learns on the
training split says in one number how far apart they are: of rows as they stand, and of rows that
are augmented naively or through TokenAdapt, as in the paper's Figure A (appendix 0.A.1).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from services.augment.tokenadapt import TokenAdapt
from services.errors import InvalidInputError
from services.gallery.sheet import literal
from services.plan.draws import check_seed, hash_key
from services.shards.store import absolute_url, open_store, read_as
from services.types import FloatArray, IntArray
from trainers.augmented_rows import Kind, augmented
from trainers.charts import save_figure
from trainers.data_config import require
from trainers.estimate import by_seed, estimate, names_of, spread_of
from trainers.evaluation import Classifier, Rows, check_alike, load_classifier, token_rows
from trainers.picture_config import ViewConfig
from trainers.program import program
from trainers.reports import as_text, machine, strict_json
from trainers.tokenadapt_report import check_belongs

logger = logging.getLogger(__name__)

REPORT = "separability.json"
_TITLES: Mapping[Kind, str] = {
    "none": "as they stand",
    "naive": "augmented naively",
    "tokenadapt": "through TokenAdapt",
}
_SEED_BITS = 32  # that scikit-learn's embedding takes
_SHOWN_CLASSES = 20  # in the picture: more colours cannot be told apart


@dataclass(frozen=True)
class SeparabilityConfig:
    """The last features of classifiers: a linear probe's accuracy, and a picture."""

    model: tuple[str, ...]
    """Folders of finished runs of trainers/classify.py; all on the same tokens and classes."""
    root: str
    """Folder that holds datasets: a path or a URL."""
    dataset: str
    """Name of the dataset."""
    out: Path
    """Folder for the report and the picture."""
    version: int | None = None
    """Version of the dataset, from 1; None takes the newest."""
    train_split: str = "train"
    """Split that the probe learns on."""
    validation_split: str = "validation"
    """Split that it is tested on, and that is drawn."""
    augment: tuple[Kind, ...] = ("none",)
    """What is done to both splits: nothing; naive: flip, affine and crop of the tokens' vectors;
    tokenadapt: the same through f and g. Each gives a column of the table."""
    tokenadapt: str = ""
    """TokenAdapt's weights (.safetensors) for it: a path or URL."""
    views: ViewConfig = field(default_factory=ViewConfig)
    rows: int = 2000
    """Rows that are drawn at most (count)."""
    seed: int = 0
    """Seed of the augmentation, and of the embedding in two dimensions."""
    batch: int = 64
    """Rows that are computed at a time (count)."""

    def __post_init__(self) -> None:
        require(bool(self.model), "model", self.model, "at least one run")
        require(self.batch >= 1, "batch", self.batch, "at least 1")
        check_seed("seed", self.seed, bits=_SEED_BITS)
        require(self.rows >= 2, "rows", self.rows, "at least 2")
        distinct = bool(self.augment) and len(set(self.augment)) == len(self.augment)
        require(distinct, "augment", self.augment, "different kinds, one at least")
        needed = "tokenadapt" in self.augment
        valid = "given with --augment tokenadapt, and empty without"
        require(bool(self.tokenadapt) == needed, "tokenadapt", self.tokenadapt, valid)


@dataclass(frozen=True)
class Panel:
    """One cloud of points: (N, 2), and their labels (N,)."""

    title: str
    points: FloatArray
    labels: IntArray


@torch.inference_mode()
def features(
    classifier: Classifier, rows: Rows, device: torch.device
) -> tuple[FloatArray, IntArray]:
    """(N, C) float32 what the head reads, and (N,) labels, of all rows."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept.append(inputs[0].float().cpu())

    labels = []
    hook = classifier.model.head.register_forward_pre_hook(keep)
    codebook = rows.codebook.to(device)
    try:
        for batch in rows.open():
            classifier.model(classifier.inputs(batch.inputs.to(device), codebook))
            labels.append(batch.label)
    finally:
        hook.remove()
    return torch.cat(kept).numpy(), torch.cat(labels).numpy()


def probe(train: tuple[FloatArray, IntArray], validation: tuple[FloatArray, IntArray]) -> float:
    """Top-1 on validation of a logistic regression on the standardised features of train.

    Raises: InvalidInputError where train has one class only.
    """
    if len(np.unique(train[1])) < 2:
        raise InvalidInputError(
            "the training split has rows of one class only: there is nothing to separate; name"
            " another split (--train-split)"
        )
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(*train)
    return float(fitted.score(*validation))


def in_two_dimensions(points: FloatArray, seed: int) -> FloatArray:
    """(N, C) -> (N, 2) by t-SNE (van der Maaten and Hinton, 2008), from the principal axes."""
    perplexity = min(30.0, max(1.0, (len(points) - 1) / 3))
    found: FloatArray = TSNE(
        perplexity=perplexity, init="pca" if len(points) > 2 else "random", random_state=seed
    ).fit_transform(points)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """0 when done, 2 after an error of ours, 130 when interrupted."""
    return program(SeparabilityConfig, separability, argv, description=__doc__)


def separability(config: SeparabilityConfig) -> None:
    """Write OUT/separability.json and .png, and log the table. Raises: SeitError.

    Runs that differ in their seed are one line of the table; the first of them is drawn.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifiers = [load_classifier(absolute_url(url), device) for url in config.model]
    check_alike(classifiers)
    kinds = {kind: _splits(config, kind, classifiers[0], device) for kind in config.augment}
    names = names_of(config.model)
    arms = by_seed(names)
    drawn = {places[0] for places in arms.values()}
    figures: dict[str, dict[str, float]] = {}
    panels: list[list[Panel]] = []
    for place, (name, classifier) in enumerate(zip(names, classifiers, strict=True)):
        figures[name], line = {}, []
        for kind, (train, validation) in kinds.items():
            there = features(classifier, validation, device)
            top1 = figures[name][kind] = probe(features(classifier, train, device), there)
            if place in drawn:
                points, labels = there[0][: config.rows], there[1][: config.rows]
                title = f"{name}, {_TITLES[kind]}\nlinear probe {top1:.1%}"
                line.append(Panel(title, in_two_dimensions(points, config.seed), labels))
        if line:
            panels.append(line)
    title = f"linear probe, top-1 (%){spread_of(arms)}"
    table = Table("model", *(_TITLES[kind] for kind in kinds), title=title)
    for arm, places in arms.items():
        found = [[figures[names[place]][kind] for place in places] for kind in kinds]
        table.add_row(arm, *(str(estimate(values)) for values in found))
    train, validation = next(iter(kinds.values()))
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "rows": {"train": train.total, "validation": validation.total},
        "linear_probe_top1": figures,
    }
    store = open_store(absolute_url(str(config.out)))
    store.write(REPORT, (strict_json(content, indent=2) + "\n").encode())
    logger.info("%s", as_text(table))
    logger.info("written: %s", config.out / REPORT)
    logger.info("written: %s", _draw(panels, validation.classes, config.out))


def _splits(
    config: SeparabilityConfig, kind: Kind, classifier: Classifier, device: torch.device
) -> tuple[Rows, Rows]:
    """Rows that the probe learns on, and those that it is tested on."""
    adapt = None
    if kind == "tokenadapt":
        adapt = read_as(absolute_url(config.tokenadapt), TokenAdapt.from_bytes)

    def rows(split: str) -> Rows:
        place = (absolute_url(config.root), config.dataset, split, config.version)
        found = token_rows(classifier, *place, config.batch, whole=kind != "none")
        if kind == "none":
            return found
        if adapt is not None:
            check_belongs(adapt, classifier.spec, found.codebook)
            valid = f"for a crop of {classifier.crop}, which the models read"
            crop = adapt.config.out_grid
            require(crop == classifier.crop, "tokenadapt", f"weights for {crop}", valid)
        how: dict[str, Any] = {"adapt": adapt, "views": config.views, "device": device}
        seed = hash_key("separability", split, config.seed)
        return augmented(found, kind, classifier.crop, seed=seed, **how)

    return rows(config.train_split), rows(config.validation_split)


def _draw(panels: Sequence[Sequence[Panel]], classes: Sequence[str], out: Path) -> Path:
    """A row a model, a column a kind of augmentation; one row where there is one kind."""
    if all(len(line) == 1 for line in panels):
        panels = [[panel for line in panels for panel in line]]
    rows, columns = len(panels), len(panels[0])
    figure = Figure(figsize=(4.2 * columns + 1.2, 4.4 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    colours = colormaps["tab20" if len(classes) > 10 else "tab10"]
    for axis, panel in zip(axes.flat, (p for line in panels for p in line), strict=True):
        for label, title in enumerate(classes[:_SHOWN_CLASSES]):
            own = panel.points[panel.labels == label]
            axis.scatter(own[:, 0], own[:, 1], s=7, color=colours(label), label=literal(title))
        axis.set_title(literal(panel.title), fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0, -1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save_figure(figure, out / "separability.png")


if __name__ == "__main__":
    raise SystemExit(main())
