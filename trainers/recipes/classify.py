"""Training classifiers: fine-tuned from an MTM model, or from scratch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from trainers.config import (
    ClassifierModelConfig,
    ClassifyRun,
    ClusterConfig,
    LoopConfig,
    OptimConfig,
)
from trainers.data_config import AugmentConfig, DataConfig, OrderConfig

_EIGHT_GPUS = ClusterConfig(workers=8, cpus_per_worker=4, gpus_per_worker=1, augment_actors=2)
_ONE_CORE = ClusterConfig(workers=1, cpus_per_worker=0.5, augment_cpus_per_actor=0.5)


def finetune_base() -> ClassifyRun:
    """ViT-B from `mtm-base`, ImageNet-1k tokens, 100 epochs of 1024 rows a step, 8 GPUs.

    python trainers/classify.py --recipe finetune-base --data.root s3://bucket/datasets
        --model.init s3://bucket/runs/mtm-base --out s3://bucket/runs/finetune-base
        --augment.tokenadapt s3://bucket/tokenadapt.safetensors

    Should reach: 77.8 % top-1 at 1.4 GB.
    Source: SeiT++, Table 2 and appendix; learning-rate rule and layer decay as published.
    """
    return ClassifyRun(
        out="runs/finetune-base",
        data=DataConfig(),
        order=OrderConfig(global_batch=1024, block=128, lanes=8, window_shards=16),
        augment=AugmentConfig(recipe="finetune", crop=28),
        model=ClassifierModelConfig(size="base", drop_path=0.1),
        optim=OptimConfig(
            base_lr=1e-3,  # 1e-3 * sqrt(batch) / 8
            base_batch=64,
            base_power=0.5,
            min_lr=1e-6,
            warmup_epochs=5,
            weight_decay=0.1,
            layer_decay=0.65,
            beta1=0.9,
            beta2=0.999,
            clip=0.0,
            smoothing=0.1,
        ),
        loop=LoopConfig(epochs=100, validate_every=5, checkpoint_every=500),
        cluster=_EIGHT_GPUS,
    )


def scratch_base() -> ClassifyRun:
    """ViT-B from scratch on ImageNet-1k tokens, 300 epochs of 1024 rows a step, 8 GPUs.

    python trainers/classify.py --recipe scratch-base --data.root s3://bucket/datasets
        --augment.tokenadapt s3://bucket/tokenadapt.safetensors --out s3://bucket/runs/scratch-base

    Should reach: 75.5 % top-1 at 1.4 GB (SeiT++ without MTM).
    Source: SeiT++, Table 2 and appendix; EMA and warm-up of the published code.
    """
    return ClassifyRun(
        out="runs/scratch-base",
        data=DataConfig(),
        order=OrderConfig(global_batch=1024, block=128, lanes=8, window_shards=16),
        augment=AugmentConfig(recipe="scratch", crop=28),
        model=ClassifierModelConfig(size="base", drop_path=0.1),
        optim=OptimConfig(
            base_lr=7.5e-4,
            base_batch=512,
            base_power=1.0,
            min_lr=1e-5,
            warmup_epochs=5,
            weight_decay=0.1,
            beta1=0.9,
            beta2=0.999,
            clip=0.0,
            smoothing=0.1,
        ),
        loop=LoopConfig(epochs=300, ema=0.99996, validate_every=10, checkpoint_every=500),
        cluster=_EIGHT_GPUS,
    )


def scratch_small_in100() -> ClassifyRun:
    """ViT-S from scratch on ImageNet-100 tokens, 300 epochs of 1024 rows a step, 4 GPUs.

    python trainers/classify.py --recipe scratch-small-in100 --data.root s3://bucket/datasets
        --data.dataset imagenet-100 --augment.tokenadapt s3://bucket/tokenadapt.safetensors
        --out s3://bucket/runs/scratch-small-in100

    Should reach: 81.4 % top-1; 80.4 without ColorAdapt (--augment.overrides
        color.coloradapt_probability 0), 78.3 without TokenAdapt, 77.3 without both (SeiT);
        76.5, 61.6 and 52.3 with --rows 76000, 25000 and 13000.
    Source: SeiT++, Tables 6 and 7; the rest as `scratch-base`.
    """
    base = scratch_base()
    return replace(
        base,
        out="runs/scratch-small-in100",
        data=replace(base.data, dataset="imagenet-100"),
        model=replace(base.model, size="small"),
        cluster=replace(base.cluster, workers=4),
    )


def transfer() -> ClassifyRun:
    """ViT-B from `finetune-base` to a fine-grained dataset, 360 epochs of 768 rows a step, 8 GPUs.

    python trainers/classify.py --recipe transfer --data.root s3://bucket/datasets
        --data.dataset inat19 --model.init s3://bucket/runs/finetune-base
        --augment.tokenadapt s3://bucket/tokenadapt.safetensors --out s3://bucket/runs/inat19

    Should reach: 58.9 % top-1 on iNaturalist 2019, 52.4 on 2018; with --loop.epochs 1000, 95.2 on
        Flowers and 86.9 on Stanford Cars.
    Source: SeiT++, Table 3 and appendix 0.C.0.2 (DeiT's fine-tuning); its values as the authors of
        DeiT give them, https://github.com/facebookresearch/deit/issues/105: a rate of 7.5e-5.
    """
    base = finetune_base()
    return replace(
        base,
        out="runs/transfer",
        data=replace(base.data, dataset="inat19"),
        order=replace(base.order, global_batch=768, block=96),
        optim=replace(
            base.optim,
            base_lr=5e-5,
            base_batch=512,
            base_power=1.0,
            min_lr=1e-6,
            warmup_epochs=5,
            weight_decay=0.05,
            layer_decay=1.0,
        ),
        loop=replace(base.loop, epochs=360, validate_every=10),
    )


def finetune_tiny() -> ClassifyRun:
    """A small ViT from `mtm-tiny`, 8x8 tokens of handwritten digits, minutes on one CPU core.

    python trainers/classify.py --recipe finetune-tiny --data.root demo-out/data --data.dataset demo
        --model.init demo-out/mtm --augment.tokenadapt demo-out/tokenadapt/tokenadapt.safetensors
        --out runs/finetune-tiny

    Should reach: more than `scratch-tiny` without TokenAdapt and ColorAdapt, over several seeds.
    Source: `make demo` of this project; the method is that of `finetune-base`.
    """
    return ClassifyRun(
        out="runs/finetune-tiny",
        data=DataConfig(root="demo-out/data", dataset="demo"),
        order=OrderConfig(global_batch=64, block=32, lanes=2, window_shards=4),
        # A mirrored digit is another sign, half a digit is none, and two of them mixed are noise
        # at this size: so no flip, no small crops, no mixing.
        augment=AugmentConfig(
            recipe="finetune",
            crop=8,
            overrides={
                "adapt.flip_probability": 0.0,
                "adapt.crop.area.0": 0.6,
                "adapt.mix.probability": 0.0,
                "plain_crop.area.0": 0.6,
                "plain_mix.probability": 0.0,
                "color.noise_probability": 0.25,
                "color.coloradapt_probability": 0.25,
            },
        ),
        model=ClassifierModelConfig(width=64, depth=3, heads=4, drop_path=0.05),
        optim=OptimConfig(
            base_lr=2e-3,
            base_batch=64,
            min_lr=1e-6,
            warmup_epochs=2,
            weight_decay=0.1,
            layer_decay=0.9,
            beta2=0.999,
            clip=3.0,
            smoothing=0.1,
        ),
        loop=LoopConfig(epochs=20, precision="float32", validate_every=4, checkpoint_every=100),
        cluster=_ONE_CORE,
    )


def scratch_tiny() -> ClassifyRun:
    """A small ViT from scratch, 8x8 tokens of handwritten digits, minutes on one CPU core.

    python trainers/classify.py --recipe scratch-tiny --data.root demo-out/data --data.dataset demo
        --out runs/scratch-tiny

    Should reach: the baseline that `finetune-tiny` is compared with, at the same budget.
    Source: `make demo` of this project; the method is that of `scratch-base`.
    """
    tuned = finetune_tiny()
    overrides = {**tuned.augment.overrides, "color.coloradapt_probability": 0.0}
    return replace(
        tuned,
        out="runs/scratch-tiny",
        # No TokenAdapt (no weights are given), no ColorAdapt; all else is the same.
        augment=replace(tuned.augment, overrides=overrides),
        optim=replace(tuned.optim, layer_decay=1.0),  # for layers that start from something
    )


RECIPES: dict[str, Callable[[], ClassifyRun]] = {
    "finetune-base": finetune_base,
    "scratch-base": scratch_base,
    "scratch-small-in100": scratch_small_in100,
    "transfer": transfer,
    "finetune-tiny": finetune_tiny,
    "scratch-tiny": scratch_tiny,
}
"""By the name that --recipe takes; the first is the default."""
