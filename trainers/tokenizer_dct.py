"""Fit a DCT tokenizer to pictures: `python trainers/tokenizer_dct.py --help`.

No network learns: quantised DCT coefficients, as in JPEG, and a codebook of them by k-means (paper,
4.6.2 and Table 8). Its file goes wherever a tokenizer's does, `seit ingest` first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from services.errors import InvalidInputError
from services.pictures import Picture, check_unreadable, list_pictures, read_picture
from services.plan.draws import check_seed
from services.shards.store import open_store
from services.stream.pictures import picture_splits
from services.tokens.codebook import count_codes, perplexity
from services.tokens.dct import DCT, DCTConfig
from services.tokens.tokenizer import save_tokenizer
from services.tokens.vitvqgan import psnr
from trainers.picture_config import PicturesConfig
from trainers.program import program
from trainers.reports import strict_json
from trainers.tokenizer_step import REPORT, TOKENIZER
from trainers.views import unit_range

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DctRun:
    """Fit a codebook of quantised DCT coefficients to pictures of the training split."""

    out: Path = Path("runs/tokenizer-dct")
    """Folder for tokenizer.safetensors and report.json."""
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    image_size: int = 256
    """Side that pictures are resized to, pixels."""
    block: int = 8
    """Side of the square that a token stands for, pixels; it divides image_size."""
    keep: int = 16
    """Coefficients kept of each channel of a block, lowest frequencies first; at most block^2."""
    codes: int = 1024
    """Codes of the codebook (count)."""
    most: int = 512
    """Pictures that teach, at most (count): all of them stand in memory."""
    rounds: int = 10
    """Rounds of k-means (count)."""
    seed: int = 0
    """Seed of the codes that k-means begins with."""

    def __post_init__(self) -> None:
        for name in ("most", "rounds"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)}, it must be at least 1")
        check_seed("seed", self.seed)
        self.dct()  # one place knows what makes sizes valid

    def dct(self) -> DCTConfig:
        """The tokenizer's own config."""
        return DCTConfig(
            (self.image_size, self.image_size), self.block, self.keep, codes=self.codes
        )


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the tokenizer stands, 2 for input that does not fit."""
    return program(DctRun, _fit, argv)


def _fit(run: DctRun) -> None:
    figures = fit(run)
    logger.info("%s", ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    logger.info("%s stands in %s", TOKENIZER, run.out)


def fit(run: DctRun) -> dict[str, float]:
    """The figures of the report, which stands beside the tokenizer when it returns."""
    splits = picture_splits(
        list_pictures(run.pictures.images).splits,
        run.pictures.validation_fraction,
        run.pictures.seed,
    )
    generator = torch.Generator().manual_seed(run.seed)
    training = _read(splits.get("train", [])[: run.most], run.image_size)
    tokenizer = DCT.fit(run.dct(), training, generator, run.rounds)
    held_out = _read(splits.get("validation", [])[: run.most], run.image_size)
    ids = tokenizer.encode(held_out)
    counts = count_codes(ids, run.codes)
    figures = {
        "validation_psnr_db": float(psnr(tokenizer.decode(ids), held_out).mean()),
        "validation_code_use": float((counts > 0).double().mean()),
        "validation_perplexity": perplexity(counts),
    }
    store = open_store(str(run.out))
    store.write(TOKENIZER, save_tokenizer(tokenizer))
    store.write(REPORT, (strict_json(figures, indent=2) + "\n").encode())
    return figures


def _read(pictures: Sequence[Picture], size: int) -> Tensor:
    """(N, 3, size, size) in [0, 1] of the pictures that can be read."""
    found, unreadable = [], []
    for picture in pictures:
        try:
            found.append(read_picture(picture.path, size, size))
        except InvalidInputError as error:
            unreadable.append(str(error))
    check_unreadable(unreadable, len(pictures), "pictures", "nothing was fitted")
    if not found:
        raise InvalidInputError(
            "there are no pictures to learn from, or none to validate on: nothing was fitted; give"
            " more of them, or another --pictures.validation-fraction"
        )
    return unit_range(torch.from_numpy(np.stack(found)))


if __name__ == "__main__":
    raise SystemExit(main())
