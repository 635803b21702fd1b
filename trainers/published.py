"""A trained model as a checkpoint that the published code loads: `python trainers/published.py`.

The way back needs no program: `--model.init FILE.pth` of trainers/classify.py and of
trainers/segment.py starts from one.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import tyro

from services.errors import InvalidInputError
from services.shards.store import open_store
from trainers.checkpoint import load_export
from trainers.models.weights import TORCH_SUFFIXES, read_url
from trainers.program import program

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """Write a model's weights under published names, as `torch.save({"model": ...})`."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Folder of a finished run, its .safetensors file, or a checkpoint (.pt): a path or URL."""
    to: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """File to write, .pth: a path or URL. One that stands is never overwritten."""
    ema: tyro.conf.FlagCreatePairsOff[bool] = False
    """Take the averaged weights of a checkpoint; a finished run's model has them already."""


def convert(options: Options) -> int:
    """Write the file; how many parameters and tables it holds.

    Raises: InvalidInputError, nothing is written then; NotFoundError; FormatError; StoreError.
    """
    folder, _, name = options.to.rpartition("/")
    store = open_store(folder or ".")
    if not name.endswith(TORCH_SUFFIXES):
        raise InvalidInputError(
            f"{options.to} would be no checkpoint by its name: end it in"
            f" {', '.join(TORCH_SUFFIXES)}"
        )
    if store.exists(name):
        raise InvalidInputError(f"{options.to} stands already: nothing was written; name another")
    if options.model.endswith(TORCH_SUFFIXES):
        state = read_url(options.model, ema=options.ema)
    elif options.ema:
        raise InvalidInputError(
            f"{options.model} is an exported model, which holds one set of weights, the averaged"
            " ones where the run kept them: leave --ema out, or name a checkpoint (.pt)"
        )
    else:
        state = load_export(options.model)[0]
    buffer = io.BytesIO()
    torch.save({"model": {name: value.float() for name, value in state.items()}}, buffer)
    store.write(name, buffer.getvalue())
    return len(state)


def main(argv: Sequence[str] | None = None) -> int:
    """The program: 0, or 2 after an error of ours."""
    return program(Options, _write, argv, description=__doc__)


def _write(options: Options) -> None:
    logger.info("%s: %d tensors", options.to, convert(options))


if __name__ == "__main__":
    raise SystemExit(main())
