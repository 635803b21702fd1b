"""Pictures, their tokens as a dataset, and classifiers trained on them, all tiny and real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from services.augment.tokenadapt import TokenAdapt, TokenAdaptConfig
from services.pictures import Picture, list_pictures, read_picture
from services.shards.manifest import commit, put_asset
from services.shards.store import open_store
from services.shards.writer import build_split, write_shard
from services.stream.pictures import picture_splits
from services.tokens.tokenizer import load_tokenizer
from services.types import TokenRows
from services.wire.seit import v1 as wire
from tests.trainers.picture_runs import write_pictures, write_tokenizer
from trainers.command import run
from trainers.config import ClassifyRun
from trainers.recipes.classify import RECIPES
from trainers.step import classify_worker
from trainers.streams import settle

DATASET = "boxes"
SMALL = (
    *("--cluster.no-ray", "--augment.crop", "4", "--optim.warmup-epochs", "0"),
    *("--order.global-batch", "16", "--order.block", "4", "--order.lanes", "2"),
    *("--loop.epochs", "4", "--loop.validate-every", "4", "--loop.log-every", "4"),
    *("--model.depth", "1", "--model.width", "16", "--model.heads", "2"),
)
MTM_SMALL = (
    *("--model.decoder-depth", "1", "--model.decoder-width", "16", "--model.decoder-heads", "2"),
)


class World:
    """A folder with `pictures`, `tokenizer.safetensors`, and `data` with their tokens."""

    def __init__(self, folder: Path, count: int = 40) -> None:
        self.folder = folder
        self.pictures = write_pictures(folder / "pictures", count)
        self.tokenizer = write_tokenizer(folder / "tokenizer.safetensors")
        self.root = folder / "data"
        self.splits = picture_splits(list_pictures(self.pictures).splits, 0.3, 0)
        self.classes = list_pictures(self.pictures).classes
        self._write()

    def train(self, name: str, *words: str) -> Path:
        """The folder of a finished run of the classifier."""
        out = self.folder / name
        given = ("--data.root", str(self.root), "--data.dataset", DATASET, "--out", str(out))
        code = run(ClassifyRun, RECIPES, classify_worker, settle, [*SMALL, *given, *words])
        assert code == 0
        return out

    def tokenadapt(self) -> Path:
        """Untrained weights that fit the tokens."""
        tokenizer = load_tokenizer(self.tokenizer)
        spec = tokenizer.spec
        grid = (spec.grid_height, spec.grid_width)
        config = TokenAdaptConfig(
            grid=grid,
            out_grid=grid,
            channels=spec.channels,
            codes=spec.codes,
            dim=16,
            heads=1,
            mlp=16,
            depth=1,
            dim_head=16,
        )
        path = self.folder / "tokenadapt.safetensors"
        path.write_bytes(TokenAdapt(config).to_bytes())
        return path

    def _write(self) -> None:
        tokenizer = load_tokenizer(self.tokenizer)
        root, spec = open_store(str(self.root)), tokenizer.spec

        def rows(pictures: list[Picture]) -> TokenRows:
            size = (spec.image_height, spec.image_width)
            pixels = np.stack([read_picture(picture.path, *size) for picture in pictures])
            with torch.inference_mode():
                ids = tokenizer.encode(torch.from_numpy(pixels).float() / 255)
            return TokenRows(
                ids=ids.numpy().astype(np.uint16),
                labels=np.array([picture.label for picture in pictures], np.int64),
                keys=[picture.key for picture in pictures],
                source_bytes=np.full(len(pictures), 700, np.int64),
            )

        splits = [
            build_split(
                *(root, DATASET, name),
                [write_shard(root, DATASET, name, rows(pictures), spec)],
                spec.codes,
            )
            for name, pictures in self.splits.items()
        ]
        codebook = put_asset(root, DATASET, "codebook", tokenizer.codebook.to_bytes())
        commit(
            root,
            wire.Manifest(
                dataset=DATASET,
                spec=spec,
                tokenizer_kind=tokenizer.kind,
                assets=[codebook],
                classes=list(self.classes),
                splits=splits,
            ),
        )
