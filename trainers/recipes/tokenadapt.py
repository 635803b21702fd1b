"""Training TokenAdapt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from trainers.config import ClusterConfig, LoopConfig, OptimConfig
from trainers.data_config import OrderConfig
from trainers.picture_config import (
    PicturesConfig,
    TokenAdaptModelConfig,
    TokenAdaptRun,
    TransformerConfig,
    ViewConfig,
)


def tokenadapt_base() -> TokenAdaptRun:
    """The paper's: one epoch of ImageNet-1k, 32x32 tokens to 28x28, 128 rows a step, one GPU.

    python trainers/tokenadapt.py --recipe tokenadapt-base --pictures.images /data/imagenet
        --tokenizer s3://bucket/tokenizer.safetensors --out s3://bucket/runs/tokenadapt-base

    Should reach: more than the naive operations on tokens in every line of its report.
    Source: SeiT++, section 3.3.2 and appendix; sizes as published.
    """
    return TokenAdaptRun(
        out="runs/tokenadapt-base",
        tokenizer="runs/tokenizer-base/tokenizer.safetensors",
        pictures=PicturesConfig(validation_fraction=0.01),
        order=OrderConfig(global_batch=128, block=32, lanes=4, window_shards=1),
        views=ViewConfig(mixup_probability=0.5),
        model=TokenAdaptModelConfig(
            size=TransformerConfig(width=384, depth=1, heads=6, hidden=1536), crop=28
        ),
        optim=OptimConfig(
            base_lr=1e-3,
            base_batch=128,
            warmup_epochs=0,
            weight_decay=0.05,
            beta1=0.9,
            beta2=0.999,
            clip=0.0,
        ),
        loop=LoopConfig(epochs=1, validate_every=1, checkpoint_every=500),
        cluster=ClusterConfig(workers=1, cpus_per_worker=8, gpus_per_worker=1),
    )


def tokenadapt_few() -> TokenAdaptRun:
    """`tokenadapt-base` from about a hundred pictures: as many steps, so thousands of epochs.

    python trainers/tokenadapt.py --recipe tokenadapt-few --pictures.images /data/hundred
        --tokenizer s3://bucket/tokenizer.safetensors --out s3://bucket/runs/tokenadapt-few

    Should reach: nearly what `tokenadapt-base` does (paper, table A: 75.1 against 75.5 top-1).
    Source: SeiT++, section 0.A.3. A picture is moved otherwise in each epoch, so no pair comes
    twice. A hundred pictures make one step of 128 rows, 28 of which do not exist and weigh 0.
    """
    base = tokenadapt_base()
    return replace(
        base,
        out="runs/tokenadapt-few",
        pictures=PicturesConfig(validation_fraction=0.2),
        loop=replace(base.loop, epochs=10_000, validate_every=2_000),
    )


def tokenadapt_tiny() -> TokenAdaptRun:
    """For the 8x8 tokens of `tokenizer-tiny`, about a minute on one CPU core.

    python trainers/tokenadapt.py --recipe tokenadapt-tiny --pictures.images demo-out/pictures
        --tokenizer demo-out/tokenizer/tokenizer.safetensors --out runs/tokenadapt-tiny

    Should reach: more than the naive operations on tokens in every line of its report.
    Source: measured with this project; the method is that of `tokenadapt-base`.
    """
    return TokenAdaptRun(
        out="runs/tokenadapt-tiny",
        tokenizer="demo-out/tokenizer/tokenizer.safetensors",
        pictures=PicturesConfig(images="demo-out/pictures"),
        order=OrderConfig(global_batch=32, block=16, lanes=2, window_shards=1),
        views=ViewConfig(crop_probability=0.5, crop_area=0.3, mixup_probability=0.2),
        model=TokenAdaptModelConfig(
            size=TransformerConfig(width=96, depth=1, heads=3, hidden=192), head_width=32
        ),
        optim=OptimConfig(
            base_lr=3e-3,
            base_batch=32,
            warmup_epochs=0.5,
            weight_decay=0.05,
            beta1=0.9,
            beta2=0.99,
            clip=1.0,
        ),
        loop=LoopConfig(epochs=12, precision="float32", validate_every=12, checkpoint_every=200),
        cluster=ClusterConfig(workers=1, cpus_per_worker=1),
    )


RECIPES: dict[str, Callable[[], TokenAdaptRun]] = {
    "tokenadapt-base": tokenadapt_base,
    "tokenadapt-few": tokenadapt_few,
    "tokenadapt-tiny": tokenadapt_tiny,
}
"""By the name that --recipe takes; the first is the default."""
