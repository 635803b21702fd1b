"""Augmenting tokens on one core of a CPU: look-up and RRC of at least 4,000 images a second, with
the nearest codes 1,500, and at most 10 % more for ColorAdapt, noise and swap together.

Peer: what the published loader does for one image without and with the nearest codes (one-hot maps
of K channels, resized, then multiplied by the codebook), on the same ids and boxes.

K = 391 codes of 32 channels, 32x32 tokens cut to 28x28, as on ImageNet-1k. One thread; times are
processor time, so that others at work on the machine do not count. Draws are included.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import harness
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from services.augment.augmenter import Augmenter
from services.augment.boxes import PLAIN_CROP, choose_boxes
from services.augment.config import AdaptConfig, ColorConfig, EdaConfig, MixConfig, RecipeConfig
from services.augment.recipe import mtm, scratch
from services.plan.draws import Draws
from services.wire.seit import v1 as wire

SPEC = wire.TokenSpec(
    grid_height=32, grid_width=32, codes=391, channels=32, image_height=256, image_width=256
)
CROP = (28, 28)
BLOCK = 128


def drawn(rows: int) -> tuple[Tensor, Tensor]:
    """Ids (N, 32, 32) int64 whose codes differ in how often they occur, and a codebook (K, D)."""
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(rows, 32, 32, generator=generator)
    codebook = torch.randn(SPEC.codes, SPEC.channels, generator=generator)
    return (share.square() * SPEC.codes).long(), codebook


def core_seconds(work: Callable[[int], object], repeats: int) -> list[float]:
    """Processor seconds of each of `repeats` calls, after one that is not counted."""
    work(0)
    seconds = []
    for repeat in range(repeats):
        began = time.process_time()
        work(repeat + 1)
        seconds.append(time.process_time() - began)
    return seconds


def recipe_work(config: RecipeConfig, ids: Tensor, codebook: Tensor) -> Callable[[int], object]:
    """One epoch of the rows through a recipe."""
    augment = Augmenter(config, SPEC, codebook).eval()
    labels = torch.zeros(len(ids), dtype=torch.int64)
    rows = np.arange(len(ids), dtype=np.int64)
    return lambda epoch: augment(ids, labels, Draws(0, epoch, rows), len(ids) // BLOCK)


def published_work(
    ids: Tensor, codebook: Tensor, config: RecipeConfig, *, quantise: bool
) -> Callable[[int], object]:
    """The same rows one by one as one-hot maps."""
    unit = F.normalize(codebook, dim=1).T.contiguous()
    rows = np.arange(len(ids), dtype=np.int64)

    def work(epoch: int) -> None:
        boxes = choose_boxes(config.plain_crop, Draws(0, epoch, rows), PLAIN_CROP, (32, 32), CROP)
        for image, (y, x, h, w) in zip(ids, boxes.tolist(), strict=True):
            hot = F.one_hot(image, SPEC.codes).permute(2, 0, 1).float()
            part = hot[None, :, y : y + h, x : x + w]
            cut = F.interpolate(part, CROP, mode="bicubic", align_corners=False)[0]
            map_TD = cut.flatten(1).T @ codebook
            if quantise:
                (F.normalize(map_TD, dim=1) @ unit).argmax(1)

    return work


def configs() -> dict[str, RecipeConfig]:
    """By name: look-up and RRC alone, with nearest codes, and with all that edits and colours."""
    plain = mtm(SPEC, CROP)
    crop = replace(plain, adapt=AdaptConfig(share=0.0), output="embeddings")
    full = scratch(SPEC, CROP)
    colour = replace(crop, eda=EdaConfig(swap_probability=0.25), color=full.color)
    return {
        "crop": replace(crop, color=ColorConfig(), plain_mix=MixConfig()),
        "crop_quantised": replace(crop, output="ids"),
        "crop_colour_swap": colour,
        "crop_quantised_colour_swap": replace(colour, output="ids"),
    }


def main() -> None:
    options = harness.options(__doc__, harness.Options)
    report = harness.Report("augment_cpu", options, packages=("torch", "numpy"))
    torch.set_num_threads(1)
    rows, few, repeats = (1024, 32, 3) if options.quick else (4096, 128, 9)
    ids, codebook = drawn(rows)
    with torch.inference_mode():
        works = {name: recipe_work(c, ids, codebook) for name, c in configs().items()}
        # In turns, so that a machine that slows down slows all of them.
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for name in works:
            works[name](0)
        for repeat in range(repeats):
            for name, work in works.items():
                began = time.process_time()
                work(repeat + 1)
                seconds[name].append(time.process_time() - began)
        config = configs()["crop"]
        peers = {
            name: few
            / float(
                np.median(
                    core_seconds(
                        published_work(ids[:few], codebook, config, quantise=quantise), repeats
                    )
                )
            )
            for name, quantise in (("crop", False), ("crop_quantised", True))
        }
    rates = {name: rows / float(np.median(found)) for name, found in seconds.items()}
    report.add("lookup_rrc", rates["crop"], "images/s", peer=peers["crop"], at_least=4000)
    report.add(
        "lookup_rrc_quantise",
        rates["crop_quantised"],
        "images/s",
        peer=peers["crop_quantised"],
        at_least=1500,
    )
    for name, base, key in (
        ("crop_colour_swap", "crop", "colour_swap_on_top"),
        ("crop_quantised_colour_swap", "crop_quantised", "colour_swap_on_top_of_quantised"),
    ):
        # The median of the ratios of neighbours in time, not the ratio of medians.
        ratios = np.array(seconds[name]) / np.array(seconds[base])
        target = 0.10 if base == "crop_quantised" else None
        report.add(key, float(np.median(ratios)) - 1, "share of its time", at_most=target)
    report.note(
        f"{rows} grids in blocks of {BLOCK}; medians of {repeats} rounds, each recipe in turn;"
        f" {few} images for the peer. Colour: scratch's ColorAdapt (p 0.25 a block) and noise"
        " (p 0.5 a block), each on half of the rows; swap on a quarter of the rows."
    )
    report.finish()


if __name__ == "__main__":
    main()
