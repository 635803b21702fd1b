"""A root that a person could look at: datasets with a tokenizer, several versions, and runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from services.shards.manifest import LoadedManifest, commit, extend, put_asset
from services.shards.store import Store
from services.shards.writer import build_split, write_shard
from services.stream.account import Account
from services.tokens.dct import DCT, DCTConfig
from services.tokens.tokenizer import save_tokenizer
from services.types import TokenRows
from services.wire.seit import v1 as wire
from tests.small_runs import write_run


def digit_images() -> torch.Tensor:
    """(N, 3, 32, 32) in [0, 1]."""
    small = torch.from_numpy(load_digits().images / 16).float()[:, None].repeat(1, 3, 1, 1)
    return torch.nn.functional.interpolate(small, (32, 32), mode="bilinear")


def fitted_tokenizer(images_N3HW: torch.Tensor) -> DCT:
    """Codes that are fitted in a moment, and show the digits."""
    generator = torch.Generator().manual_seed(0)
    config = DCTConfig(image_size=(32, 32), block=4, keep=16, codes=96)
    return DCT.fit(config, images_N3HW[:300], generator, rounds=3)


def write_digits_dataset(root: Store, name: str = "digits", versions: int = 3) -> LoadedManifest:
    """scikit-learn's digits as tokens, a version for each part of them, skewed on purpose."""
    images, digits = digit_images(), load_digits()
    model = fitted_tokenizer(images)
    order = np.argsort(digits.target >= 8, kind="stable")[: 120 * versions + 40]
    with torch.inference_mode():
        ids = model.encode(images[order]).numpy().astype(np.uint16)
    labels = digits.target[order].astype(np.int64)

    def shard(split: str, rows: slice) -> wire.Split:
        made = TokenRows(
            ids[rows],
            labels[rows],
            [f"{labels[row]}/{order[row]:04}.png" for row in range(rows.start, rows.stop)],
            np.full(rows.stop - rows.start, 4000, np.int64),
        )
        written = write_shard(root, name, split, made, model.spec)
        return build_split(root, name, split, [written], model.spec.codes)

    committed = commit(
        root,
        wire.Manifest(
            dataset=name,
            spec=replace(model.spec),
            tokenizer_kind=model.kind,
            assets=[
                put_asset(root, name, "tokenizer", save_tokenizer(model)),
                put_asset(root, name, "codebook", model.codebook.to_bytes()),
            ],
            classes=[f"digit {number}" for number in range(10)],
            splits=[shard("train", slice(0, 120)), shard("validation", slice(120, 160))],
            skipped=[wire.Skipped(path="3/broken.png", reason="no picture")],
            message="first import",
        ),
    )
    for part in range(1, versions):
        more = shard("train", slice(40 + 120 * part, 160 + 120 * part))
        committed = commit(root, extend(root, committed, [more], f"part {part + 1}"))
    return committed


def write_runs(folder: Path) -> None:
    """A run that flows, one that ended and one that lost a shard."""
    account = Account(bytes_fetched=10**6, storage_seconds=1.0, augment_seconds=3.0)
    write_run(folder / "mtm-base", world=2, account=account)
    write_run(folder / "classify", state="finished", steps=10)
    write_run(folder / "broken", state="failed", account=replace(account, lost=("gone",)))
