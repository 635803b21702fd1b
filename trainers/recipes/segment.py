"""Training segmentation models on tokens and masks."""

from __future__ import annotations

from collections.abc import Callable

from trainers.config import ClusterConfig, LoopConfig, OptimConfig
from trainers.data_config import AugmentConfig, DataConfig, OrderConfig
from trainers.segment_config import SegmenterModelConfig, SegmentRun


def segment_base() -> SegmentRun:
    """ViT-B and UperNet, ADE-20k at 64x64 tokens, 80,896 steps of 16 rows, 8 GPUs.

    python trainers/segment.py --recipe segment-base --data.root s3://bucket/datasets
        --data.dataset ade20k --model.init s3://bucket/runs/mtm-base
        --augment.tokenadapt s3://bucket/tokenadapt.safetensors --out s3://bucket/runs/segment-base

    Should reach: 43.2 mIoU from a classifier fine-tuned from MTM, 39.0 as SeiT.
    Source: SeiT++, Table 4 and 0.C.0.3; what the paper leaves open is mmsegmentation's ViT-UperNet.
    """
    return SegmentRun(
        out="runs/segment-base",
        data=DataConfig(dataset="ade20k"),
        order=OrderConfig(global_batch=16, block=2, lanes=8, window_shards=16),
        augment=AugmentConfig(recipe="segment", crop=64),
        model=SegmenterModelConfig(size="base"),
        optim=OptimConfig(
            base_lr=6e-5,
            base_batch=16,
            base_power=0.0,
            schedule="polynomial",
            power=1.0,
            warmup_epochs=1500 / 1264,  # 1,500 steps; an epoch has 20,210 rows
            weight_decay=0.01,
            beta1=0.9,
            beta2=0.999,
            clip=0.0,
        ),
        loop=LoopConfig(epochs=64, validate_every=8, checkpoint_every=2000),  # 80,896 steps
        cluster=ClusterConfig(workers=8, cpus_per_worker=4, gpus_per_worker=1, augment_actors=1),
    )


def segment_tiny() -> SegmentRun:
    """A small ViT and UperNet, 16x16 tokens of digits on photographs, minutes on one CPU core.

    python trainers/segment.py --recipe segment-tiny --data.root segment-out/data
        --data.dataset scenes --augment.tokenadapt segment-out/tokenadapt/tokenadapt.safetensors
        --out runs/segment-tiny

    Should reach: more with TokenAdapt than without, over several seeds.
    Source: `python trainers/segment_demo.py` of this project; the method is that of `segment-base`.
    """
    return SegmentRun(
        out="runs/segment-tiny",
        data=DataConfig(root="segment-out/data", dataset="scenes"),
        order=OrderConfig(global_batch=16, block=8, lanes=2, window_shards=2),
        # A mirrored digit is another sign, and half a digit is none.
        augment=AugmentConfig(
            recipe="segment",
            crop=16,
            overrides={"adapt.flip_probability": 0.0, "adapt.crop.area.0": 0.5},
        ),
        model=SegmenterModelConfig(
            width=48,
            depth=4,
            heads=4,
            patch=2,
            decoder_width=24,
            auxiliary_width=16,
            drop_path=0.0,
            head_dropout=0.0,
        ),
        optim=OptimConfig(
            base_lr=1.5e-3,
            base_batch=16,
            base_power=0.0,
            schedule="polynomial",
            warmup_epochs=2,
            weight_decay=0.05,
            beta2=0.999,
            clip=3.0,
        ),
        loop=LoopConfig(epochs=300, precision="float32", validate_every=30, checkpoint_every=200),
        cluster=ClusterConfig(workers=1, cpus_per_worker=0.5, augment_cpus_per_actor=0.5),
    )


RECIPES: dict[str, Callable[[], SegmentRun]] = {
    "segment-base": segment_base,
    "segment-tiny": segment_tiny,
}
"""By the name that --recipe takes; the first is the default."""
