"""Training VQGANs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from trainers.config import ClusterConfig, LoopConfig, OptimConfig
from trainers.data_config import OrderConfig
from trainers.picture_config import PicturesConfig, ViewConfig
from trainers.recipes.tokenizer import tokenizer_tiny
from trainers.tokenizer_config import VQGANModelConfig, VQGANRun


def vqgan_tiny() -> VQGANRun:
    """8x8 tokens of 64 codes for pictures of 32x32 pixels, about two minutes on one CPU core.

    python trainers/tokenizer_vqgan.py --recipe vqgan-tiny --pictures.images demo-out/pictures
        --out runs/vqgan-tiny

    Should reach: 37 dB and nearly all codes in use on scikit-learn's handwritten digits.
    Source: measured with this project; the method is that of `vqgan-f8`.
    """
    like = tokenizer_tiny()
    return VQGANRun(
        out="runs/vqgan-tiny",
        pictures=like.pictures,
        order=like.order,
        views=like.views,
        model=VQGANModelConfig(
            image_size=32,
            codes=64,
            width=16,
            multipliers=(1, 2, 2),
            blocks=1,
            attention=(2,),
            groups=8,
            revive_every=20,
        ),
        optim=replace(like.optim, base_lr=2e-3),
        loop=like.loop,
        cluster=like.cluster,
    )


def vqgan_f8() -> VQGANRun:
    """VQGAN f=8, the other tokenizer of Table 8: 32x32 tokens of 256 codes for 256x256, 8 GPUs.

    python trainers/tokenizer_vqgan.py --recipe vqgan-f8 --pictures.images /data/openimages
        --out s3://bucket/runs/vqgan-f8

    Should reach: not measured by this project.
    Source: sizes of the published weights (CompVis, OpenImages), learning rate a picture and Adam's
    betas of Esser et al., 2021. Its perceptual (weight 1) and adversarial losses (0.75), which make
    pictures sharper, need a file of weights: docs/augment.md names the options. With 16,384 codes:
    --model.codes 16384.
    """
    return VQGANRun(
        out="runs/vqgan-f8",
        pictures=PicturesConfig(validation_fraction=0.02),
        order=OrderConfig(global_batch=96, block=12, lanes=8, window_shards=1),
        views=ViewConfig(affine_probability=0.0, crop_area=0.2),
        model=VQGANModelConfig(l1=1.0),
        optim=OptimConfig(
            base_lr=4.5e-6,
            base_batch=1,
            warmup_epochs=0,
            weight_decay=0.0,
            beta1=0.5,
            beta2=0.9,
            clip=1.0,
        ),
        loop=LoopConfig(epochs=20, validate_every=1, checkpoint_every=1000),
        cluster=ClusterConfig(workers=8, cpus_per_worker=8, gpus_per_worker=1),
    )


RECIPES: dict[str, Callable[[], VQGANRun]] = {
    "vqgan-f8": vqgan_f8,
    "vqgan-tiny": vqgan_tiny,
}
"""By the name that --recipe takes; the first is the default."""
