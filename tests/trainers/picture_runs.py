"""Small runs on small pictures for the tests of the tokenizer's and TokenAdapt's trainers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from services.tokens.tokenizer import save_tokenizer
from trainers.config import ClusterConfig, LoopConfig, OptimConfig
from trainers.context import Place
from trainers.data_config import OrderConfig
from trainers.picture_config import (
    PicturesConfig,
    TokenAdaptModelConfig,
    TokenAdaptRun,
    TransformerConfig,
    ViewConfig,
)
from trainers.tokenizer_config import (
    TokenizerModelConfig,
    TokenizerRun,
    VQGANModelConfig,
    VQGANRun,
)
from trainers.tokenizer_step import tokenizer_worker

SIDE, PATCH, CODES = 16, 4, 12
TRAIN = 20  # pictures of 25 that train: three steps of 8 rows, 4 rows of the last do not exist
SIZE = TransformerConfig(width=16, depth=1, heads=1, hidden=16)


def write_pictures(folder: Path, count: int = 25) -> Path:
    """Bright boxes on a dark ground, of two classes: above or below the middle."""
    noise = np.random.default_rng(1)
    for number in range(count):
        pixels = np.full((SIDE, SIDE, 3), 20, np.uint8)
        y, x = 8 * (number % 2) + noise.integers(4), noise.integers(10)
        pixels[y : y + 4, x : x + 6] = noise.integers(100, 256, size=3)
        path = folder / f"class{number % 2}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def place(rank: int = 0, world: int = 1, stop: Callable[[], bool] = lambda: False) -> Place:
    """A worker on the CPU, without Ray."""
    return Place(rank=rank, world=world, device=torch.device("cpu"), should_stop=stop)


def _common(out: Path, images: Path, loop: dict[str, Any]) -> dict[str, Any]:
    base = LoopConfig(epochs=2, precision="float32", checkpoint_every=2, validate_every=1)
    return {
        "out": str(out),
        "pictures": PicturesConfig(images=str(images), validation_fraction=0.2),
        "order": OrderConfig(global_batch=8, block=2, lanes=2, window_shards=1),
        "views": ViewConfig(mixup_probability=0.3),
        "optim": OptimConfig(base_lr=2e-3, base_batch=8, warmup_epochs=0, clip=1.0),
        "loop": replace(base, **loop),
        "cluster": ClusterConfig(no_ray=True),
    }


_CODEBOOK: dict[str, Any] = {
    "image_size": SIDE,
    "codes": CODES,
    "channels": 6,
    "revive_every": 2,
    "revive_until": 1.0,
    "adversarial": 0.1,
    "adversarial_from": 2,
    "discriminator_width": 4,
    "discriminator_depth": 1,
}


def tokenizer_run(out: Path, images: Path, **loop: Any) -> TokenizerRun:
    """A ViT-VQGAN of 4x4 tokens, `loop` changed as given."""
    model = TokenizerModelConfig(
        encoder=SIZE, decoder=SIZE, patch=PATCH, head_width=16, **_CODEBOOK
    )
    return TokenizerRun(**_common(out, images, loop), model=model)


def vqgan_run(out: Path, images: Path, **loop: Any) -> VQGANRun:
    """A VQGAN of 4x4 tokens, likewise."""
    model = VQGANModelConfig(
        width=8, multipliers=(1, 1, 1), blocks=1, attention=(2,), groups=4, **_CODEBOOK
    )
    return VQGANRun(**_common(out, images, loop), model=model)


def train_rank(rank: int, world: int, out: str, images: str) -> None:
    """One of several ranks that train a tokenizer."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    store = dist.FileStore(f"{out}.rendezvous", world)
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=limit)
    tokenizer_worker(tokenizer_run(Path(out), Path(images)), place(rank, world))
    dist.destroy_process_group()


def train_other_rank(index: int, world: int, out: str, images: str) -> None:
    """The ranks after the first, for `torch.multiprocessing.spawn`."""
    train_rank(index + 1, world, out, images)


def write_tokenizer(path: Path) -> Path:
    """The file of an untrained tokenizer of that size."""
    torch.manual_seed(0)
    run = tokenizer_run(path, path)
    path.write_bytes(save_tokenizer(run.model.build()))
    return path


def tokenadapt_run(
    out: Path, images: Path, tokenizer: Path, crop: int | None = None, **loop: Any
) -> TokenAdaptRun:
    """TokenAdapt for the tokens of `write_tokenizer`, `loop` changed as given."""
    return TokenAdaptRun(
        **_common(out, images, loop),
        tokenizer=str(tokenizer),
        model=TokenAdaptModelConfig(size=SIZE, head_width=16, crop=crop),
    )
