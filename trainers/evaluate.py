"""How right trained classifiers are: `python trainers/evaluate.py --help`.

On a split of tokens, or on pictures that are tokenized on the fly; `--suite robustness` adds
corrupted and shifted pictures (paper, Table 5).
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from services.errors import InvalidInputError, NotFoundError
from services.pictures import Picture, list_pictures
from services.plan.draws import check_seed
from services.shards.store import absolute_url, open_store, read_as
from services.stream.pictures import PictureSet, picture_splits
from services.tokens.tokenizer import TokenizerModel, load_tokenizer
from trainers.data_config import check_share, require
from trainers.estimate import names_of
from trainers.evaluate_report import (
    Condition,
    accuracy_tables,
    by_class,
    confusion,
    draw_confusion,
    draw_robustness,
    robustness_means,
    robustness_table,
    shares,
)
from trainers.evaluation import (
    Change,
    Classifier,
    ClassMap,
    Rows,
    Tally,
    accepted,
    check_alike,
    count_answers,
    load_classifier,
    picture_rows,
    token_rows,
)
from trainers.objectnet import locate, shipped_map
from trainers.program import program
from trainers.reports import as_text, machine, read_json, strict_json
from trainers.robustness import (
    CORRUPTIONS,
    LAYOUTS,
    PAPER,
    SEVERITIES,
    corruption,
    read_class_map,
)
from trainers.views import unit_range

logger = logging.getLogger(__name__)

REPORT = "report.json"


@dataclass(frozen=True)
class ShiftedConfig:
    """Folders of class/picture files of shifted domains, with what their classes are called.

    A class map is a JSON file {"class folder": "class of the model", or a list of them}; without
    one, folders are named as the model's classes. Classes that a map leaves out are passed over.
    """

    imagenet_r: str = ""
    """Folder in ImageNet-R's layout; only the classes that it has may be answered."""
    imagenet_r_classes: str = ""
    """Its class map."""
    sketch: str = ""
    """Folder in ImageNet-Sketch's layout."""
    sketch_classes: str = ""
    """Its class map."""
    objectnet: str = ""
    """Folder in ObjectNet's layout; its frame of 2 pixels is cut off. For a model of ImageNet-1k
    the class map follows from the `mappings` beside the pictures."""
    objectnet_classes: str = ""
    """Its class map, in the place of these."""

    def __post_init__(self) -> None:
        for name in LAYOUTS:
            maps, folder = getattr(self, f"{name}_classes"), getattr(self, name)
            require(not maps or bool(folder), f"shifted.{name}_classes", maps, "given with folder")


@dataclass(frozen=True)
class EvaluateConfig:
    """Top-1 and top-5 over exactly the whole of a split, each class, and what is confused."""

    model: tuple[str, ...]
    """Folders (or .safetensors files) of finished runs of trainers/classify.py; all on the same
    tokens and classes."""
    out: Path
    """Folder for report.json and pictures."""
    root: str = ""
    """Tokens: folder that holds datasets, a path or URL."""
    dataset: str = ""
    """Tokens: name of the dataset."""
    version: int | None = None
    """Tokens: version of the dataset, from 1; None takes the newest."""
    images: str = ""
    """Pictures: folder of class/picture files, or of train/ and val/ with such folders."""
    tokenizer: str = ""
    """Pictures: the tokenizer (.safetensors) that the model's tokens were made with."""
    split: str = "validation"
    """Which split of the dataset or of the pictures."""
    validation_fraction: float = 0.2
    """Pictures: share set apart where the folder has no split of its own, as `seit ingest` does;
    0 with --split train takes all of a plain folder."""
    seed: int = 0
    """Pictures: seed of that split, as `seit ingest` has it."""
    suite: Literal["accuracy", "robustness"] = "accuracy"
    """"robustness" adds noise and blur in five severities, and the folders of `shifted`."""
    shifted: ShiftedConfig = ShiftedConfig()
    batch: int = 64
    """Rows that are computed at a time (count)."""

    def __post_init__(self) -> None:
        require(bool(self.model), "model", self.model, "at least one run")
        check_seed("seed", self.seed)
        tokens, pictures = self.root and self.dataset, self.images and self.tokenizer
        require(
            bool(tokens) != bool(pictures),
            "root, dataset, images, tokenizer",
            (self.root, self.dataset, self.images, self.tokenizer),
            "either a root and a dataset, or images and a tokenizer",
        )
        require(
            self.suite == "accuracy" or bool(pictures),
            "suite",
            self.suite,
            "accuracy on tokens: corruptions are made in pixels, so give images and a tokenizer",
        )
        folders = [getattr(self.shifted, name) for name in LAYOUTS]
        require(
            self.suite == "robustness" or not any(folders),
            "shifted",
            [folder for folder in folders if folder],
            "empty without --suite robustness",
        )
        require(self.batch >= 1, "batch", self.batch, "at least 1")
        check_share("validation_fraction", self.validation_fraction)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when done, 2 after an error of ours, 130 when interrupted."""
    return program(EvaluateConfig, evaluate, argv, description=__doc__)


def evaluate(config: EvaluateConfig) -> None:
    """Evaluate, write OUT/report.json and the pictures, and log the tables.

    Raises: SeitError, before any work where models, data and options do not fit.
    """
    _claim(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifiers = [load_classifier(absolute_url(url), device) for url in config.model]
    check_alike(classifiers)
    names = names_of(config.model)
    if config.suite == "robustness":
        _robustness(config, classifiers, names, device)
        return
    rows = _rows(config, classifiers[0], device)
    tallies = _count(classifiers, rows, device, "accuracy")
    pictures = [
        draw_confusion(name, tally, config.out / f"confusion-{name}.png")
        for name, tally in zip(names, tallies, strict=True)
    ]
    found = {
        name: {**shares(tally), "classes": by_class(tally), "confusion": confusion(tally)}
        for name, tally in zip(names, tallies, strict=True)
    }
    _finish(config, {"models": found}, as_text(*accuracy_tables(names, tallies)), pictures)


def _robustness(
    config: EvaluateConfig,
    classifiers: Sequence[Classifier],
    names: Sequence[str],
    device: torch.device,
) -> None:
    tokenizer = read_as(absolute_url(config.tokenizer), load_tokenizer)
    pictures, classes = _pictures(config)
    shifted = _shifted(
        config.shifted, classifiers[0].classes
    )  # every folder is looked at before any work

    def rows(change: Change | None) -> Rows:
        return picture_rows(
            *(classifiers[0], tokenizer, pictures, classes, config.batch, device), change=change
        )

    def condition(title: str, kind: str, severity: int, rows: Rows, **how: Any) -> Condition:
        tallies = _count(classifiers, rows, device, title, **how)
        return Condition(title, kind, severity, tallies)

    found = [condition("clean", "clean", 0, rows(None))]
    for kind in CORRUPTIONS:
        for severity in SEVERITIES:
            title = f"{kind.replace('_', ' ')} {severity}"
            found.append(condition(title, kind, severity, rows(corruption(kind, severity))))
    for name, (some, classes_there, by_name) in shifted.items():
        layout = LAYOUTS[name]
        opened = picture_rows(
            *(classifiers[0], tokenizer, some, classes_there, config.batch, device),
            name=layout.title,
            border=layout.border,
        )
        how = {"by_name": by_name, "among_accepted": layout.among_accepted}
        found.append(condition(layout.title, name, 0, opened, **how))
    picture = draw_robustness(
        names, found, _samples(tokenizer, pictures), config.out / "robustness.png"
    )
    means = robustness_means(found, len(names))
    report = {
        "conditions": [
            {
                "title": c.title,
                "kind": c.kind,
                "severity": c.severity,
                "models": {
                    n: {**shares(t), "classes": by_class(t)}
                    for n, t in zip(names, c.tallies, strict=True)
                },
            }
            for c in found
        ],
        "means": {
            kind: {n: {"top1": a, "top5": b} for n, (a, b) in zip(names, each, strict=True)}
            for kind, each in means.items()
        },
    }
    _finish(config, report, as_text(robustness_table(names, found, means, PAPER)), [picture])


def _asked(config: EvaluateConfig) -> dict[str, Any]:
    asked: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return {name: value for name, value in asked.items() if name not in ("out", "batch")}


def _claim(config: EvaluateConfig) -> None:
    """Refuse to write over the report of another evaluation."""
    store = open_store(absolute_url(str(config.out)))
    if not store.exists(REPORT):
        return
    stands = read_json(store, REPORT).get("asked", {})
    asked = _asked(config)
    differing = [name for name in asked if asked[name] != stands.get(name)]
    if differing:
        raise InvalidInputError(
            f"{config.out} holds the report of another evaluation (other {', '.join(differing)});"
            " nothing was changed there; give another --out"
        )


def _rows(config: EvaluateConfig, classifier: Classifier, device: torch.device) -> Rows:
    if config.dataset:
        place = (absolute_url(config.root), config.dataset, config.split, config.version)
        return token_rows(classifier, *place, config.batch)
    tokenizer = read_as(absolute_url(config.tokenizer), load_tokenizer)
    pictures, classes = _pictures(config)
    return picture_rows(classifier, tokenizer, pictures, classes, config.batch, device)


def _pictures(config: EvaluateConfig) -> tuple[list[Picture], tuple[str, ...]]:
    listing = list_pictures(config.images)
    splits = picture_splits(listing.splits, config.validation_fraction, config.seed)
    if config.split not in splits:
        raise NotFoundError(
            f"{config.images} gives no split {config.split!r}, only {', '.join(splits)}: name one"
            " of these, or set a share apart (--validation-fraction)"
        )
    return splits[config.split], listing.classes


def _shifted(
    config: ShiftedConfig, known: Sequence[str]
) -> dict[str, tuple[list[Picture], tuple[str, ...], ClassMap | None]]:
    """By layout: pictures, their classes, and the class map, of those folders that were given."""
    found = {}
    for name in LAYOUTS:
        if not (folder := getattr(config, name)):
            continue
        mappings = None
        if name == "objectnet":
            folder, mappings = locate(folder)
        listing = list_pictures(folder)
        given, by_name = getattr(config, f"{name}_classes"), None
        if given:
            by_name = read_class_map(given)
        elif mappings is not None:
            by_name = shipped_map(mappings, known)
        accepted(listing.classes, known, by_name)  # refuses classes that the model does not know
        pictures = listing.splits.get("validation", listing.splits["train"])
        found[name] = (pictures, listing.classes, by_name)
    return found


def _count(
    classifiers: Sequence[Classifier], rows: Rows, device: torch.device, title: str, **how: Any
) -> list[Tally]:
    """`count_answers` with a progress bar, where there is a terminal."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(file=sys.stderr),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as progress:
        bar = progress.add_task(title, total=rows.total)

        def told(count: int) -> None:
            progress.advance(bar, count)

        tallies = count_answers(classifiers, rows, device, told=told, **how)
    if not tallies[0].rows:
        raise InvalidInputError(
            f"{title}: no row was counted, so there is no accuracy; name a split with rows, or a"
            " class map that names its classes"
        )
    return tallies


def _samples(
    tokenizer: TokenizerModel, pictures: Sequence[Picture]
) -> dict[str, list[torch.Tensor]]:
    """One picture, (3, h, w), under each corruption at severities 0 to 5."""
    size = (tokenizer.spec.image_height, tokenizer.spec.image_width)
    readable = PictureSet("sample", pictures, size)
    row, pixels = next(
        (row, found) for row in range(len(pictures)) if (found := readable.read(row)) is not None
    )
    clean, rows = unit_range(torch.from_numpy(pixels))[None], np.array([row])
    return {
        kind: [clean[0], *(corruption(kind, level)(clean, rows)[0] for level in SEVERITIES)]
        for kind in CORRUPTIONS
    }


def _finish(
    config: EvaluateConfig, report: dict[str, Any], text: str, pictures: Sequence[Path]
) -> None:
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "asked": _asked(config),
        **report,
    }
    store = open_store(absolute_url(str(config.out)))
    store.write(REPORT, (strict_json(content) + "\n").encode())
    logger.info("%s", text)
    for path in (*pictures, config.out / REPORT):
        logger.info("written: %s", path)


if __name__ == "__main__":
    raise SystemExit(main())
