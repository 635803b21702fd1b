"""What the demo leaves for people: pictures, and the closing table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from services.augment.tokenadapt import TokenAdapt
from services.pictures import list_pictures
from services.shards.manifest import load_manifest
from services.shards.store import open_store
from services.stats.report import storage_report
from services.stream.pictures import picture_splits
from services.tokens.tokenizer import load_tokenizer
from trainers.charts import Curve, draw_curves, draw_storage
from trainers.figures import read_curve
from trainers.gallery import draw_gallery
from trainers.picture_config import PicturesConfig
from trainers.recipes.tokenadapt import tokenadapt_tiny
from trainers.reports import as_text, read_json


def write_pictures(out: Path, images: Path, dataset: str, seeds: int) -> list[Path]:
    """Gallery, loss curves and storage chart in OUT/gallery; their paths."""
    folder = out / "gallery"
    defaults = PicturesConfig()
    splits = picture_splits(
        list_pictures(images).splits, defaults.validation_fraction, defaults.seed
    )
    loaded = load_manifest(open_store(str(out / "data")), dataset)
    tuned, scratch = _runs(out, "finetune", seeds), _runs(out, "scratch", seeds)
    return [
        draw_gallery(
            splits["validation"],
            load_tokenizer(out / "tokenizer" / "tokenizer.safetensors").eval(),
            TokenAdapt.from_bytes(out / "tokenadapt" / "tokenadapt.safetensors").eval(),
            folder / "augmentations.png",
            views=tokenadapt_tiny().views,
        ),
        draw_curves(
            {
                "MTM: loss (nats)": [
                    Curve("training", [out / "mtm"], "loss"),
                    Curve("validation", [out / "mtm"], "validation_loss"),
                ],
                "classification: training loss (nats)": [
                    Curve("MTM, TokenAdapt, ColorAdapt", tuned, "loss"),
                    Curve("from scratch, without", scratch, "loss"),
                ],
                "classification: validation top-1": [
                    Curve("MTM, TokenAdapt, ColorAdapt", tuned, "validation_top1"),
                    Curve("from scratch, without", scratch, "validation_top1"),
                ],
            },
            folder / "curves.png",
        ),
        draw_storage(loaded, folder / "storage.png"),
    ]


def closing_table(out: Path, dataset: str, seeds: int, seconds: dict[str, float]) -> str:
    """The figures of the whole chain, as text."""
    total = storage_report(load_manifest(open_store(str(out / "data")), dataset).manifest).total
    assert total is not None  # the report always has one
    operations = read_json(open_store(str(out / "tokenadapt")), "report.json")["operations"]
    stream = read_json(open_store(str(out / "stream")), "report.json")
    table = Table("what", "figure", title="from pictures to a trained token model")
    table.add_row("images", f"{total.rows:,}")
    table.add_row(
        "storage",
        f"{total.bytes_per_image:.1f} B an image: {total.share_of_pixels:.2%} of the raw pixels,"
        f" {total.share_of_source:.2%} of the source files",
    )
    table.add_row(
        "entropy of the tokens",
        f"{total.entropy_bytes_per_image:.1f} B an image, {total.used_codes} codes used",
    )
    table.add_row(
        "tokens' PSNR", f"{_last(out / 'tokenizer', 'validation_psnr_db'):.1f} dB (validation)"
    )
    for operation in ("hflip", "affine", "crop"):
        found = operations[operation]
        table.add_row(
            f"agreement with true tokens, {operation}",
            f"TokenAdapt {found['tokenadapt']['agreement']:.1%},"
            f" naive {found['naive']['agreement']:.1%}",
        )
    table.add_row("top-1, MTM + TokenAdapt + ColorAdapt", _accuracy(_runs(out, "finetune", seeds)))
    table.add_row("top-1, from scratch without them", _accuracy(_runs(out, "scratch", seeds)))
    table.add_row(
        "stream",
        f"{stream['rows_per_second']:,.0f} rows/s, first batch after"
        f" {stream['first_batch_seconds']:.1f} s",
    )
    table.add_section()
    for name, spent in seconds.items():
        table.add_row(f"time of {name}", f"{spent:.0f} s")
    table.add_row("time in all", f"{sum(seconds.values()):.0f} s")
    return as_text(table)


def _runs(out: Path, kind: str, seeds: int) -> list[Path]:
    return [out / f"{kind}-{seed}" for seed in range(seeds)]


def _last(run: Path, figure: str) -> float:
    return read_curve(run, figure)[1][-1]


def _accuracy(runs: Sequence[Path]) -> str:
    """Mean of the runs' last validation, and each of them: the last, not the best of many."""
    found = [_last(run, "validation_top1") for run in runs]
    each = ", ".join(f"{value:.1%}" for value in found)
    return f"{statistics.mean(found):.1%} ({each})"
