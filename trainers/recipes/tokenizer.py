"""Training tokenizers."""

from __future__ import annotations

from collections.abc import Callable

from trainers.config import ClusterConfig, LoopConfig, OptimConfig
from trainers.data_config import OrderConfig
from trainers.picture_config import (
    PicturesConfig,
    TransformerConfig,
    ViewConfig,
)
from trainers.tokenizer_config import TokenizerModelConfig, TokenizerRun

_SMALL = TransformerConfig(width=512, depth=8, heads=8, hidden=2048)
_BASE = TransformerConfig(width=768, depth=12, heads=12, hidden=3072)
_TINY = TransformerConfig(width=64, depth=2, heads=2, hidden=128)

_OPTIM = OptimConfig(
    base_lr=1e-4,
    base_batch=256,
    warmup_epochs=1,
    weight_decay=1e-4,
    beta1=0.9,
    beta2=0.99,
    clip=1.0,
)
_GENTLE = ViewConfig(affine_probability=0.0, crop_area=0.2)
"""Photographs are mirrored and cropped, but not turned, which would repeat pixels at edges."""


def tokenizer_tiny() -> TokenizerRun:
    """8x8 tokens of 64 codes for pictures of 32x32 pixels, about a minute on one CPU core.

    python trainers/tokenizer.py --recipe tokenizer-tiny --pictures.images demo-out/pictures
        --out runs/tokenizer-tiny

    Should reach: 24 dB and most of the codes in use on scikit-learn's handwritten digits.
    Source: measured with this project; the method is that of `tokenizer-base`.
    """
    return TokenizerRun(
        out="runs/tokenizer-tiny",
        pictures=PicturesConfig(images="demo-out/pictures"),
        order=OrderConfig(global_batch=16, block=8, lanes=2, window_shards=1),
        views=ViewConfig(
            flip_probability=0.25, affine_probability=0.5, crop_probability=0.5, crop_area=0.3
        ),
        model=TokenizerModelConfig(
            encoder=_TINY,
            decoder=_TINY,
            image_size=32,
            patch=4,
            codes=64,
            channels=16,
            head_width=32,
            codebook=0.1,
            revive_every=20,
        ),
        optim=OptimConfig(
            base_lr=3e-3,
            base_batch=16,
            warmup_epochs=0.5,
            weight_decay=0.0,
            beta1=0.9,
            beta2=0.99,
            clip=1.0,
        ),
        loop=LoopConfig(epochs=14, precision="float32", validate_every=7, checkpoint_every=200),
        cluster=ClusterConfig(workers=1, cpus_per_worker=1),
    )


def tokenizer_small() -> TokenizerRun:
    """ViT-VQGAN small: 32x32 tokens of 8192 codes for 256x256 pixels, 8 GPUs.

    python trainers/tokenizer.py --recipe tokenizer-small --pictures.images /data/imagenet
        --out s3://bucket/runs/tokenizer-small

    Should reach: not measured by this project.
    Source: sizes of ViT-VQGAN (Yu et al., 2022, table 2). Its perceptual and adversarial losses,
    which make pictures sharper, need a file of weights: docs/augment.md names the options.
    """
    return TokenizerRun(
        out="runs/tokenizer-small",
        pictures=PicturesConfig(validation_fraction=0.02),
        order=OrderConfig(global_batch=256, block=32, lanes=8, window_shards=1),
        views=_GENTLE,
        model=TokenizerModelConfig(encoder=_SMALL, decoder=_SMALL),
        optim=_OPTIM,
        loop=LoopConfig(epochs=100, validate_every=5, checkpoint_every=500),
        cluster=ClusterConfig(workers=8, cpus_per_worker=8, gpus_per_worker=1),
    )


def tokenizer_base() -> TokenizerRun:
    """ViT-VQGAN base, the tokenizer of SeiT++: 32x32 tokens of 8192 codes for 256x256, 8 GPUs.

    python trainers/tokenizer.py --recipe tokenizer-base --pictures.images /data/imagenet
        --out s3://bucket/runs/tokenizer-base

    Should reach: not measured by this project.
    Source: sizes of ViT-VQGAN (Yu et al., 2022, table 2). Its perceptual and adversarial losses,
    which make pictures sharper, need a file of weights: docs/augment.md names the options.
    """
    return TokenizerRun(
        out="runs/tokenizer-base",
        pictures=PicturesConfig(validation_fraction=0.02),
        order=OrderConfig(global_batch=256, block=32, lanes=8, window_shards=1),
        views=_GENTLE,
        model=TokenizerModelConfig(encoder=_BASE, decoder=_BASE),
        optim=_OPTIM,
        loop=LoopConfig(epochs=100, validate_every=5, checkpoint_every=500),
        cluster=ClusterConfig(workers=8, cpus_per_worker=8, gpus_per_worker=1),
    )


RECIPES: dict[str, Callable[[], TokenizerRun]] = {
    "tokenizer-base": tokenizer_base,
    "tokenizer-small": tokenizer_small,
    "tokenizer-tiny": tokenizer_tiny,
}
"""By the name that --recipe takes; the first is the default."""
