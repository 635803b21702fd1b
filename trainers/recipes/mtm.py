"""Pre-training by masked token modelling."""

from __future__ import annotations

from collections.abc import Callable

from trainers.config import ClusterConfig, LoopConfig, MtmModelConfig, MtmRun, OptimConfig
from trainers.data_config import AugmentConfig, DataConfig, OrderConfig


def mtm_base() -> MtmRun:
    """ViT-B on ImageNet-1k tokens, 400 epochs of 4096 rows a step, 8 GPUs.

    python trainers/mtm.py --recipe mtm-base --data.root s3://bucket/datasets
        --augment.tokenadapt s3://bucket/tokenadapt.safetensors --out s3://bucket/runs/mtm-base

    Should reach: no figure of its own; fine-tuned by `finetune-base`, 77.8 % top-1.
    Source: SeiT++, Table 2 and appendix (masked token modelling); clip and betas of MAGE.
    """
    return MtmRun(
        out="runs/mtm-base",
        data=DataConfig(),
        order=OrderConfig(global_batch=4096, block=128, lanes=8, window_shards=16),
        augment=AugmentConfig(recipe="mtm", crop=28),
        model=MtmModelConfig(size="base"),
        optim=OptimConfig(
            base_lr=1.5e-4,
            base_batch=256,
            base_power=1.0,
            min_lr=0.0,
            warmup_epochs=40,
            weight_decay=0.05,
            beta1=0.9,
            beta2=0.95,
            clip=3.0,
        ),
        loop=LoopConfig(epochs=400, validate_every=20, checkpoint_every=500),
        cluster=ClusterConfig(workers=8, cpus_per_worker=4, gpus_per_worker=1, augment_actors=2),
    )


def mtm_tiny() -> MtmRun:
    """A small ViT on 8x8 tokens of handwritten digits, a few minutes on one CPU core.

    python trainers/mtm.py --recipe mtm-tiny --data.root demo-out/data --data.dataset demo
        --augment.tokenadapt demo-out/tokenadapt/tokenadapt.safetensors --out runs/mtm-tiny

    Should reach: a validation loss clearly below ln K, what guessing costs.
    Source: `make demo` of this project; the method is that of `mtm-base`.
    """
    return MtmRun(
        out="runs/mtm-tiny",
        data=DataConfig(root="demo-out/data", dataset="demo"),
        order=OrderConfig(global_batch=64, block=32, lanes=2, window_shards=4),
        # A crop of a fifth of 8x8 tokens would be three tokens wide.
        augment=AugmentConfig(
            recipe="mtm",
            crop=8,
            overrides={"plain_crop.area.0": 0.6, "adapt.crop.area.0": 0.6},
        ),
        model=MtmModelConfig(
            width=64, depth=3, heads=4, decoder_width=64, decoder_depth=1, decoder_heads=4
        ),
        optim=OptimConfig(
            base_lr=2e-3, base_batch=64, warmup_epochs=5, weight_decay=0.05, clip=3.0
        ),
        loop=LoopConfig(epochs=50, precision="float32", validate_every=10, checkpoint_every=100),
        cluster=ClusterConfig(workers=1, cpus_per_worker=0.5, augment_cpus_per_actor=0.5),
    )


RECIPES: dict[str, Callable[[], MtmRun]] = {"mtm-base": mtm_base, "mtm-tiny": mtm_tiny}
"""By the name that --recipe takes; the first is the default."""
