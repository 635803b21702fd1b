"""Whether TokenAdapt helps segmentation: the whole chain on small scenes, several seeds.

    python trainers/segment_demo.py --out segment-out

Scenes of digits on photographs (`scenes.py`) become tokens and masks; the same model learns from
them without augmentation and with TokenAdapt, with the same number of steps and nothing else
changed. It ends with a table of mIoU and a chart; each run's folder has a picture of predictions.
Started again, it skips what stands.
"""

from __future__ import annotations

import logging
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from services.errors import InvalidInputError
from services.shards.store import open_store
from trainers.chain import HERE, Step, fingerprint, run_steps, short
from trainers.charts import Curve, draw_curves
from trainers.figures import read_curve
from trainers.program import RESUMES, program
from trainers.reports import as_text, read_json
from trainers.scenes import ScenesConfig, write_scenes

logger = logging.getLogger(__name__)

DATASET = "scenes"
ARMS = {"plain": "no augmentation", "adapt": "TokenAdapt"}
"""Kinds of runs, by the name of their folders."""


@dataclass(frozen=True)
class SegmentDemoConfig:
    """Scenes to segmentation models, with TokenAdapt and without."""

    out: Path = Path("segment-out")
    """Folder for the scenes, the dataset, checkpoints and pictures."""
    training: int = 160
    """Scenes to train on (count)."""
    validation: int = 200
    """Scenes to validate on (count)."""
    seeds: int = 3
    """Seeds of each kind of run (count)."""
    quick: bool = False
    """A few steps of everything: shows that the chain works, not what it reaches."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise InvalidInputError(f"seeds is {self.seeds}, expected 1 or more")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chain: 0 when all of it is done, else the exit code of the step that failed."""
    return program(SegmentDemoConfig, _run, argv, interrupted=RESUMES)


def _run(config: SegmentDemoConfig) -> int:
    out = config.out.resolve()
    write_scenes(ScenesConfig(out / "pictures", config.training, config.validation))
    code, seconds = run_steps(chain(config, out), out, fingerprint(out / "pictures"))
    if code:
        return code
    runs = {name: [out / f"{name}-{seed}" for seed in range(config.seeds)] for name in ARMS}
    curves = {
        title: [Curve(ARMS[name], folders, figure) for name, folders in runs.items()]
        for title, figure in (
            ("training loss (nats)", "loss"),
            ("validation loss (nats)", "validation_loss"),
            ("validation mIoU", "validation_miou"),
        )
    }
    chart = draw_curves(curves, out / "gallery" / "curves.png")
    logger.info("%s", _table(runs, seconds))
    logger.info("chart: %s", short(str(chart), out))
    for folders in runs.values():
        logger.info("predictions: %s", short(str(folders[0] / "predictions.png"), out))
    return 0


def chain(config: SegmentDemoConfig, out: Path) -> list[Step]:
    """The steps in order; runs of a seed stand side by side, so that early ones say something."""
    quick = ["--loop.epochs", "2", "--optim.warmup-epochs", "0"] if config.quick else []
    training = str(out / "pictures" / "images" / "training")
    tokenizer = out / "tokenizer" / "tokenizer.safetensors"
    adapt = out / "tokenadapt" / "tokenadapt.safetensors"

    def trainer(name: str, folder: Path, *words: str) -> list[str]:
        return [sys.executable, str(HERE / f"{name}.py"), *words, "--out", str(folder), *quick]

    steps = [
        Step(
            "tokenizer",
            "a small ViT-VQGAN learns to turn scenes into tokens (training split only)",
            trainer(
                *("tokenizer", tokenizer.parent, "--recipe", "tokenizer-tiny"),
                *("--pictures.images", training, "--model.image-size", "64"),
                *("--model.codes", "128", "--loop.epochs", "80", "--loop.validate-every", "20"),
            ),
            tokenizer.parent,
            [tokenizer.name],
        ),
        Step(
            "ingest",
            "scenes and masks become token shards and a manifest",
            [
                *(sys.executable, "-m", "services.cli", "ingest"),
                *("--images", str(out / "pictures" / "images")),
                *("--masks", str(out / "pictures" / "annotations")),
                *("--root", str(out / "data"), "--dataset", DATASET, "--mode", "replace"),
                *("--tokenizer", str(tokenizer), "--rows-per-shard", "64", "--actors", "1"),
            ],
            out / "data" / DATASET,
            ["versions/00000001.json"],
        ),
        Step(
            "tokenadapt",
            "f and g learn to augment tokens as if they were pictures",
            trainer(
                *("tokenadapt", adapt.parent, "--recipe", "tokenadapt-tiny"),
                *("--pictures.images", training, "--tokenizer", str(tokenizer)),
                *("--views.flip-probability", "0", "--loop.epochs", "240"),
                *("--loop.validate-every", "20"),
            ),
            adapt.parent,
            [adapt.name],
        ),
    ]
    for seed in range(config.seeds):
        for name, about in ARMS.items():
            folder = out / f"{name}-{seed}"
            weights = ["--augment.tokenadapt", str(adapt)] if name == "adapt" else []
            command = trainer(
                *("segment", folder, "--recipe", "segment-tiny", "--loop.seed", str(seed)),
                *("--data.root", str(out / "data"), "--data.dataset", DATASET, *weights),
            )
            steps.append(
                Step(folder.name, f"segmentation, {about}", command, folder, ["model.safetensors"])
            )
    return steps


def _table(runs: dict[str, list[Path]], seconds: dict[str, float]) -> str:
    """mIoU of the last validation of each run, its mean, and the time it took."""
    table = Table("augmentation", "mIoU, each seed", "mean", "pixels right", "s a run")
    for name, folders in runs.items():
        found = [read_curve(folder, "validation_miou")[1][-1] for folder in folders]
        right = [read_json(open_store(str(folder)), "report.json") for folder in folders]
        table.add_row(
            ARMS[name],
            ", ".join(f"{value:.1%}" for value in found),
            f"{statistics.mean(found):.1%}",
            f"{statistics.mean(one['validation_pixel_accuracy'] for one in right):.1%}",
            f"{statistics.mean(seconds[folder.name] for folder in folders):.0f}",
        )
    return as_text(table)


if __name__ == "__main__":
    raise SystemExit(main())
