"""Measure TokenAdapt on held-out pictures: `python trainers/tokenadapt_report.py --help`.

Leaves a table on the terminal, and report.json, report.png (the same figures as bars) and
augmentations.png (pictures, decoded) in a folder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from services.augment.tokenadapt import TokenAdapt, codebook_digest
from services.errors import InvalidInputError
from services.pictures import Picture, list_pictures, read_picture
from services.plan.draws import check_seed
from services.shards.store import open_store, read_as
from services.stream.pictures import picture_splits
from services.tokens.codebook import Codebook
from services.tokens.tokenizer import TokenizerModel, load_tokenizer
from services.wire.seit import v1 as wire
from trainers.charts import draw_bars
from trainers.gallery import draw_gallery
from trainers.picture_config import PicturesConfig, ViewConfig
from trainers.program import program
from trainers.reports import as_text, strict_json
from trainers.tokenadapt_compare import METHODS, OPERATIONS, Comparison, Pairs, report
from trainers.views import unit_range

logger = logging.getLogger(__name__)

_NAMES = {"tokenadapt": "TokenAdapt", "naive": "naive", "roundtrip": "decode-augment-encode"}


@dataclass(frozen=True)
class ReportConfig:
    """How well TokenAdapt augments tokens: agreement of ids, PSNR and time of each operation,
    against the naive operation on tokens and against decoding, augmenting and encoding."""

    tokenadapt: str
    """TokenAdapt's weights (.safetensors): a path or URL."""
    tokenizer: str
    """The tokenizer that they were trained with (.safetensors): a path or URL."""
    out: Path = Path("tokenadapt-report")
    """Folder for report.json, report.png and augmentations.png."""
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    """Of which the validation split is measured."""
    views: ViewConfig = field(default_factory=ViewConfig)
    """How strong each operation is; how often it occurs makes no difference here."""
    most: int = 2000
    """Pictures that are measured, at most (count)."""
    batch: int = 32
    """Pictures at a time (count); Mixup pairs them."""
    device: str = "cpu"
    """Device to measure on: cpu, or cuda."""
    threads: int = 1
    """Threads of the CPU: speeds are those of so many cores (count)."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        for name in ("most", "batch", "threads"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)}, it must be at least 1")
        check_seed("seed", self.seed)
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise InvalidInputError(f"device is {self.device!r}, but no GPU is at hand: use cpu")


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the report stands, 2 for input that does not fit."""
    return program(ReportConfig, _report, argv)


def _report(config: ReportConfig) -> None:
    logger.info("%s", table(measure(config)))
    logger.info("report.json, report.png and augmentations.png stand in %s", config.out)


def measure(config: ReportConfig) -> dict[str, Any]:
    """The report, whose files stand in `config.out` when it returns."""
    torch.set_num_threads(config.threads)
    device = torch.device(config.device)
    tokenizer = read_as(config.tokenizer, load_tokenizer)
    adapt = read_as(config.tokenadapt, TokenAdapt.from_bytes).to(device).eval()
    check_belongs(adapt, tokenizer.spec, tokenizer.codebook)
    pictures = _held_out(config.pictures)[: config.most]
    comparison = Comparison(
        tokenizer,
        adapt.config.out_grid,
        config.views,
        seed=config.seed,
        block=config.batch,
        device=device,
    )
    model, sums = Pairs(adapt), torch.zeros(len(comparison.figures), dtype=torch.float64)
    # Once unmeasured: the first call of anything on a GPU pays for its start.
    comparison.measure(model, *next(_batches(config, pictures, tokenizer, device)))
    comparison.speeds(1)
    batches = _batches(config, pictures, tokenizer, device)
    total = -(-len(pictures) // config.batch)
    console = Console(stderr=True)
    shown = track(batches, "measured", total, console=console, disable=not console.is_terminal)
    with torch.inference_mode():
        for images, rows in shown:
            sums += comparison.measure(model, images, rows).double().sum(1).cpu()
    means = dict(zip(comparison.figures, (sums / len(pictures)).tolist(), strict=True))
    told = {
        **report({**means, **comparison.speeds(1)}),
        "pictures": len(pictures),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "threads": config.threads,
    }
    config.out.mkdir(parents=True, exist_ok=True)
    draw_gallery(
        pictures,
        tokenizer.cpu(),
        adapt.cpu(),
        config.out / "augmentations.png",
        views=config.views,
        operations=[name for name in OPERATIONS if name != "affine"],
        seed=config.seed,
    )
    _draw(told, config.out / "report.png")
    open_store(str(config.out)).write("report.json", (strict_json(told, indent=2) + "\n").encode())
    return told


def check_belongs(adapt: TokenAdapt, spec: wire.TokenSpec, codebook: Codebook) -> None:
    """InvalidInputError unless the weights were trained with tokens of this kind and codebook."""
    config, own = adapt.config, codebook_digest(codebook.weight)
    grid = (spec.grid_height, spec.grid_width)
    if (config.codes, config.channels, config.grid) != (spec.codes, spec.channels, grid) or (
        adapt.codebook and adapt.codebook != own
    ):
        raise InvalidInputError(
            f"these TokenAdapt weights are for {config.codes} codes of {config.channels} channels"
            f" on a grid of {config.grid} (codebook {adapt.codebook or 'not known'}), the tokens"
            f" are {spec.codes} codes of {spec.channels} on {grid} (codebook {own}): nothing was"
            " measured; give the tokenizer, or the tokens, that they were trained with"
        )


def _held_out(config: PicturesConfig) -> list[Picture]:
    splits = picture_splits(
        list_pictures(config.images).splits, config.validation_fraction, config.seed
    )
    if not splits.get("validation"):
        raise InvalidInputError(
            f"{config.images} gives no validation pictures with pictures.validation_fraction"
            f" {config.validation_fraction}: set a share apart, or lay out train/ and val/"
        )
    return splits["validation"]


def _batches(
    config: ReportConfig,
    pictures: Sequence[Picture],
    tokenizer: TokenizerModel,
    device: torch.device,
) -> Iterator[tuple[torch.Tensor, Any]]:
    """(pictures (N, 3, H, W) in [0, 1], row numbers (N,)) of each batch."""
    spec = tokenizer.spec
    for start in range(0, len(pictures), config.batch):
        part = pictures[start : start + config.batch]
        pixels = [read_picture(p.path, spec.image_height, spec.image_width) for p in part]
        images = unit_range(torch.from_numpy(np.stack(pixels)).to(device))
        yield images, np.arange(start, start + len(part), dtype=np.int64)


def table(told: Mapping[str, Any]) -> str:
    """The report as text: an operation and method a line."""
    shown = Table(
        *("operation", "method", "same ids", "PSNR (dB)", "images/s", "time"),
        title=f"{told['pictures']} held-out pictures, {told['device']}",
    )
    for column in shown.columns[2:]:
        column.justify = "right"
    for operation, found in told["operations"].items():
        fastest = found["naive"]["images_per_second"]
        for method in METHODS:
            one = found[method]
            shown.add_row(
                operation if method == METHODS[0] else "",
                _NAMES[method],
                f"{one['agreement']:.1%}",
                f"{one['psnr_db']:.2f}",
                f"{one['images_per_second']:,.0f}",
                f"{fastest / one['images_per_second']:.1f}x",
            )
        shown.add_row("", "true tokens, decoded", "100.0%", f"{found['tokenizer']['psnr_db']:.2f}")
        shown.add_section()
    return as_text(shown)


def _draw(told: Mapping[str, Any], path: Path) -> None:
    operations = told["operations"]

    def series(figure: str, scale: float = 1.0) -> dict[str, list[float]]:
        return {
            _NAMES[m]: [scale * found[m][figure] for found in operations.values()] for m in METHODS
        }

    bound = {"true tokens": [found["tokenizer"]["psnr_db"] for found in operations.values()]}
    draw_bars(
        {
            "ids that equal those of the truly augmented picture (%)": series("agreement", 100),
            "PSNR of the decoded result to it (dB)": {**series("psnr_db"), **bound},
            "images a second (log scale)": series("images_per_second"),
        },
        list(operations),
        path,
    )


if __name__ == "__main__":
    raise SystemExit(main())
