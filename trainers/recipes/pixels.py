"""Training classifiers on pixels: what classifiers of tokens are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from trainers.config import ClusterConfig
from trainers.picture_config import (
    PicturesConfig,
    PixelAugmentConfig,
    PixelModelConfig,
    PixelRun,
)
from trainers.recipes.classify import scratch_base, scratch_tiny


def pixels_base() -> PixelRun:
    """ViT-B/16 on ImageNet-1k's pictures, 300 epochs of 1024 rows a step, 8 GPUs.

    python trainers/classify_pixels.py --recipe pixels-base --pictures.images /data/imagenet
        --out s3://bucket/runs/pixels-base

    Should reach: 81.8 % top-1 at 140 GB; with less of the augmentation (DeiT's RandAugment and
        random erasing are not here) somewhat less.
    Source: SeiT++, Table 1; schedule, smoothing, Mixup and CutMix of DeiT (Touvron et al., 2021),
        which `scratch-base` shares.
    """
    tokens = scratch_base()
    return PixelRun(
        out="runs/pixels-base",
        pictures=PicturesConfig(images="imagenet"),
        order=tokens.order,
        augment=PixelAugmentConfig(),
        model=PixelModelConfig(size="base"),
        optim=tokens.optim,
        loop=tokens.loop,
        cluster=ClusterConfig(workers=8, cpus_per_worker=8, gpus_per_worker=1),
    )


def pixels_tiny() -> PixelRun:
    """A small ViT on handwritten digits of 32x32 pixels, minutes on one CPU core.

    python trainers/classify_pixels.py --recipe pixels-tiny --pictures.images demo-out/pictures
        --out runs/pixels-tiny

    Should reach: what `scratch-tiny` loses by reading tokens.
    Source: `seit storage-study` of this project; all but the input is that of `scratch-tiny`.
    """
    tokens = scratch_tiny()
    return PixelRun(
        out="runs/pixels-tiny",
        pictures=PicturesConfig(images="demo-out/pictures"),
        order=replace(tokens.order, window_shards=1),
        # As for the tokens of digits: no mirror images, no small crops, no mixing.
        augment=PixelAugmentConfig(flip_probability=0.0, crop_area=0.6, mix_probability=0.0),
        model=PixelModelConfig(
            width=64, depth=3, heads=4, drop_path=0.05, image_size=32, crop=32, patch=8
        ),
        optim=tokens.optim,
        loop=tokens.loop,
        cluster=ClusterConfig(workers=1, cpus_per_worker=1),
    )


RECIPES: dict[str, Callable[[], PixelRun]] = {
    "pixels-base": pixels_base,
    "pixels-tiny": pixels_tiny,
}
"""By the name that --recipe takes; the first is the default."""
