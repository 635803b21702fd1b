"""`seit demo`: from pictures to a trained token model, each step as the program a user would run.

All steps share one local Ray cluster. A step that is done is noted with its command and skipped
when the demo is started again; a training step that was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from services.errors import InvalidInputError, SeitError
from services.pictures import Picture, list_pictures, write_digits
from services.stream.cluster import local_cluster
from trainers.demo_report import closing_table, write_pictures

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
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


@dataclass(frozen=True)
class Step:
    """One program of the chain. outputs: names in its folder that stand when it is done."""

    name: str
    about: str
    command: Sequence[str]
    folder: Path
    outputs: Sequence[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chain: 0 when all of it is done, else the exit code of the step that failed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        config = tyro.cli(DemoConfig, args=argv, prog="seit demo")
        return _run(config)
    except SeitError as error:
        logger.error("%s", error)
        return 2
    except KeyboardInterrupt:
        logger.error("interrupted; the same command goes on from here")
        return 130


def _run(config: DemoConfig) -> int:
    out = config.out.resolve()
    images = config.images.resolve() if config.images else write_digits(out / "pictures", size=32)
    seconds: dict[str, float] = {}
    if code := run_steps(chain(config, images, out), images, out, seconds):
        return code
    return _finish(config, out, images, seconds)


def run_steps(steps: Sequence[Step], images: Path, out: Path, seconds: dict[str, float]) -> int:
    """Run what is not done yet, on one local cluster: 0, or the exit code of the step that failed.

    images: the pictures that the steps start from. out: where it is noted what is done.
    seconds: gets the time of each step.
    """
    listing = list_pictures(images)  # bad pictures are said before a cluster starts
    files = [picture for found in listing.splits.values() for picture in found]
    fingerprint = _fingerprint(files)
    notes = out / "steps"
    notes.mkdir(parents=True, exist_ok=True)
    os.environ["SEIT_CACHE_DIR"] = str(out / "cache")  # the cluster's processes inherit it
    with local_cluster() as address:
        environment = {**os.environ, "RAY_ADDRESS": address}
        redone = False
        for step in steps:
            note = notes / f"{step.name}.json"
            mark = {"command": list(step.command), "pictures": fingerprint}
            known = json.loads(note.read_text()) if note.exists() else {}
            same = known.get("mark") == mark
            if same and not redone and known.get("seconds") is not None and _stand(step):
                seconds[step.name] = known["seconds"]
                logger.info("[%s] done before, in %.0f s", step.name, seconds[step.name])
                continue
            if known and (not same or redone):  # ours, and made from something else
                shutil.rmtree(step.folder, ignore_errors=True)
            redone = True
            note.write_text(json.dumps({"mark": mark, "seconds": None}))
            logger.info("[%s] %s", step.name, step.about)
            logger.info("  $ %s", " ".join(_short(word, out) for word in step.command))
            began = time.monotonic()
            code = _call(step.command, environment)
            if code:
                logger.error(
                    "[%s] ended with code %d; the same command goes on from here", step.name, code
                )
                return code
            seconds[step.name] = time.monotonic() - began
            note.write_text(json.dumps({"mark": mark, "seconds": seconds[step.name]}))
    return 0


def _call(command: Sequence[str], environment: dict[str, str]) -> int:
    """Exit code of a program. Ctrl-C reaches it too, and it is given the time to end well."""
    with subprocess.Popen(command, env=environment) as program:
        try:
            return program.wait()
        except KeyboardInterrupt:
            program.wait()
            raise


def _fingerprint(pictures: Sequence[Picture]) -> str:
    """Digest of names, sizes and times of all pictures: changes when one of them does."""
    digest = hashlib.sha256()
    for picture in pictures:
        status = picture.path.stat()
        digest.update(os.fsencode(f"{picture.key}\0{status.st_size}\0{status.st_mtime_ns}\0"))
    return digest.hexdigest()


def _finish(config: DemoConfig, out: Path, images: Path, seconds: dict[str, float]) -> int:
    logger.info("[pictures] gallery, loss curves and storage chart")
    began = time.monotonic()
    written = write_pictures(out, images, DATASET, config.seeds)
    seconds["pictures"] = time.monotonic() - began
    logger.info("%s", closing_table(out, DATASET, config.seeds, seconds))
    for path in written:
        logger.info("picture: %s", _short(str(path), out))
    logger.info("what stands, over HTTP: seit serve %s", _short(str(out / "data"), out))
    logger.info("training curves: tensorboard --logdir %s", _short(str(out), out))
    return 0


def _stand(step: Step) -> bool:
    return all((step.folder / name).exists() for name in step.outputs)


def _short(word: str, out: Path) -> str:
    """A word of a command as a person would type it from the folder above `out`."""
    if word == sys.executable:
        return "python"
    return word.replace(f"{HERE}/", "trainers/").replace(f"{out.parent}/", "")


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
