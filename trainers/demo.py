"""`seit demo`: from pictures to a trained token model, each step as the program a user would run.

All steps share one local Ray cluster. A step that is done is noted with its command and skipped
when the demo is started again; a training step that was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.errors import InvalidInputError
from services.pictures import write_digits
from trainers.chain import HERE, Step, fingerprint, run_steps, short
from trainers.demo_report import closing_table, write_pictures
from trainers.program import RESUMES, program

logger = logging.getLogger(__name__)

DATASET = "demo"


@dataclass(frozen=True)
class DemoConfig:
    """Pictures to a trained token model: tokenizer, ingest, TokenAdapt, MTM, classifiers, pictures.

    Everything is left in one folder; started again, the demo skips what stands there.
    """

    out: Path = Path("demo-out")
    """Folder for the dataset, checkpoints, logs and pictures."""
    images: Path | None = None
    """Folder of class/picture files of any size; None takes scikit-learn's handwritten digits."""
    seeds: int = 3
    """Seeds of each classifier (count); the table shows their mean and spread."""
    quick: bool = False
    """A few steps of everything: shows that the chain works, not what it reaches."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise InvalidInputError(f"seeds is {self.seeds}, expected 1 or more")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chain: 0 when all of it is done, else the exit code of the step that failed."""
    return program(DemoConfig, _run, argv, prog="seit demo", interrupted=RESUMES)


def _run(config: DemoConfig) -> int:
    out = config.out.resolve()
    images = config.images.resolve() if config.images else write_digits(out / "pictures", size=32)
    made_from = fingerprint(images)  # bad pictures are said before a cluster starts
    code, seconds = run_steps(chain(config, images, out), out, made_from)
    if code:
        return code
    return _finish(config, out, images, seconds)


def _finish(config: DemoConfig, out: Path, images: Path, seconds: dict[str, float]) -> int:
    logger.info("[pictures] gallery, loss curves and storage chart")
    began = time.monotonic()
    written = write_pictures(out, images, DATASET, config.seeds)
    seconds["pictures"] = time.monotonic() - began
    logger.info("%s", closing_table(out, DATASET, config.seeds, seconds))
    for path in written:
        logger.info("picture: %s", short(str(path), out))
    logger.info("what stands, over HTTP: seit serve %s", short(str(out / "data"), out))
    logger.info("training curves: tensorboard --logdir %s", short(str(out), out))
    return 0


def chain(config: DemoConfig, images: Path, out: Path) -> list[Step]:
    """The steps in order."""
    quick = ["--loop.epochs", "2", "--optim.warmup-epochs", "0"] if config.quick else []

    def trainer(name: str, *words: str, out: Path) -> list[str]:
        return [sys.executable, str(HERE / f"{name}.py"), *words, "--out", str(out), *quick]

    tokens = ["--data.root", str(out / "data"), "--data.dataset", DATASET]
    tokenizer = out / "tokenizer" / "tokenizer.safetensors"
    adapt = out / "tokenadapt" / "tokenadapt.safetensors"
    steps = [
        Step(
            "tokenizer",
            "a small ViT-VQGAN learns to turn pictures into tokens (training split only)",
            trainer(
                *("tokenizer", "--recipe", "tokenizer-tiny", "--pictures.images", str(images)),
                out=out / "tokenizer",
            ),
            out / "tokenizer",
            [tokenizer.name],
        ),
        Step(
            "ingest",
            "pictures become token shards and a manifest",
            [
                *(sys.executable, "-m", "services.cli", "ingest", "--images", str(images)),
                *("--root", str(out / "data"), "--dataset", DATASET, "--mode", "replace"),
                *("--tokenizer", str(tokenizer), "--rows-per-shard", "256", "--actors", "1"),
            ],
            out / "data" / DATASET,
            ["versions/00000001.json"],
        ),
        Step(
            "tokenadapt",
            "f and g learn to augment tokens as if they were pictures",
            trainer(
                *("tokenadapt", "--recipe", "tokenadapt-tiny", "--pictures.images", str(images)),
                *("--tokenizer", str(tokenizer)),
                out=out / "tokenadapt",
            ),
            out / "tokenadapt",
            [adapt.name],
        ),
        Step(
            "mtm",
            "masked token modelling on the stream, TokenAdapt on half of each batch",
            trainer(
                *("mtm", "--recipe", "mtm-tiny", *tokens, "--augment.tokenadapt", str(adapt)),
                out=out / "mtm",
            ),
            out / "mtm",
            ["model.safetensors"],
        ),
    ]
    for seed in range(config.seeds):
        tuned, scratch = out / f"finetune-{seed}", out / f"scratch-{seed}"
        steps += [
            Step(
                tuned.name,
                "the classifier fine-tunes from MTM, with TokenAdapt and ColorAdapt",
                trainer(
                    *("classify", "--recipe", "finetune-tiny", *tokens),
                    *("--augment.tokenadapt", str(adapt), "--model.init", str(out / "mtm")),
                    *("--loop.seed", str(seed)),
                    out=tuned,
                ),
                tuned,
                ["model.safetensors"],
            ),
            Step(
                scratch.name,
                "the baseline: from scratch, without TokenAdapt and ColorAdapt",
                trainer(
                    *("classify", "--recipe", "scratch-tiny", *tokens, "--loop.seed", str(seed)),
                    out=scratch,
                ),
                scratch,
                ["model.safetensors"],
            ),
        ]
    steps.append(
        Step(
            "stream",
            "how fast the stream is by itself, TokenAdapt included",
            [
                *(sys.executable, "-m", "services.cli", "stream", "--root", str(out / "data")),
                *("--dataset", DATASET, "--crop", "8", "--batch", "256", "--block", "32"),
                *("--tokenadapt", str(adapt), "--seconds", "2" if config.quick else "10"),
                *("--report", str(out / "stream" / "report.json")),
            ],
            out / "stream",
            ["report.json"],
        )
    )
    return steps


if __name__ == "__main__":
    raise SystemExit(main())
