"""From draws to the parameters of the operations: numpy only, the same on every device.

Shape letters: n rows of a block or of a part of it, D channels of a code, T tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.augment.config import (
    AdaptConfig,
    ColorConfig,
    EdaConfig,
    MixConfig,
)
from services.augment.eda import disjoint_windows
from services.augment.mix import cutmix_boxes, kept_share, symmetric_beta
from services.plan.draws import Draws
from services.types import BoolArray, FloatArray, IdArray, IntArray


def partners(rows: IntArray) -> IntArray:
    """For each row of a block, or of one path of it, its mirror image: positions (n,) int64.

    rows: (n,) row numbers, -1 where a row does not exist. A row whose mirror image does not exist
    gets itself, so rows that are not there change nothing.
    """
    index = np.arange(len(rows), dtype=np.int64)
    return np.where(rows[::-1] >= 0, index[::-1], index)


@dataclass(frozen=True)
class EdaChoice:
    """Rows for synonyms, with tokens and picks (n, T), and rows for swaps, with windows (n, 5)."""

    synonym_rows: IntArray
    replace: BoolArray
    pick: IntArray
    swap_rows: IntArray
    windows: IntArray


def choose_eda(config: EdaConfig, draws: Draws, grid: tuple[int, int]) -> EdaChoice:
    """One choice a row."""
    choice = draws.uniform("eda")[:, 0]
    threshold = config.synonym_probability
    synonym_rows = np.flatnonzero(choice < threshold)
    swap_rows = np.flatnonzero(
        (choice >= threshold) & (choice < threshold + config.swap_probability)
    )
    tokens = grid[0] * grid[1]
    some = draws.take(synonym_rows)
    return EdaChoice(
        synonym_rows=synonym_rows,
        replace=some.uniform("eda.replace", tokens) < config.synonym_rate,
        pick=some.integers("eda.pick", config.synonym_count, tokens),
        swap_rows=swap_rows,
        windows=disjoint_windows(draws.uniform("eda.swap", 3)[swap_rows], grid, config.swap_scale),
    )


@dataclass(frozen=True)
class ColorChoice:
    """Rows for Emb-Noise, with its normals still as integers, or rows for ColorAdapt.

    channel: (n, D) standard normals. levels: (n, H * W * D) uint16 for `normals_from_levels`.
    partner: (m,) rows of the block that lend their colours to `adapt_rows` (m,).
    """

    noise_rows: IntArray
    channel: FloatArray
    levels: IdArray
    adapt_rows: IntArray
    partner: IntArray


def choose_color(
    config: ColorConfig, draws: Draws, channels: int, grid: tuple[int, int]
) -> ColorChoice:
    """One choice for the block; its rows are those of the smallest numbers."""
    order = np.argsort(draws.uniform("color.rows")[:, 0], kind="stable")
    chosen = np.sort(order[: round(config.share * len(order))])
    choice = float(draws.block_uniform("color")[0])
    noise = choice < config.noise_probability
    adapt = not noise and choice < config.noise_probability + config.coloradapt_probability
    noise_rows, adapt_rows = chosen[: noise * len(chosen)], chosen[: adapt * len(chosen)]
    some = draws.take(noise_rows)
    elements = channels * grid[0] * grid[1]
    return ColorChoice(
        noise_rows=noise_rows,
        channel=some.normal("color.channel", channels),
        levels=some.levels("color.element", elements),
        adapt_rows=adapt_rows,
        partner=partners(draws.rows)[adapt_rows],
    )


@dataclass(frozen=True)
class WarpChoice:
    """Parameters of `geometry.affine_matrices`, each (n,) or (n, 2)."""

    flip: BoolArray
    rotate: FloatArray
    shift: FloatArray
    shear: FloatArray


def choose_warp(config: AdaptConfig, draws: Draws) -> WarpChoice:
    """Flip, and with `affine_probability` each of the five turns with `affine_each`."""
    coins = draws.uniform("adapt.coins", 7)  # flip, any turn, then one a turn
    signed = 2 * draws.uniform("adapt.values", 5) - 1  # (n, 5) in [-1, 1)
    turned = coins[:, 1:2] < config.affine_probability
    values = np.where(turned & (coins[:, 2:] < config.affine_each), signed, 0).astype(np.float32)
    return WarpChoice(
        flip=coins[:, 0] < config.flip_probability,
        rotate=values[:, 0] * config.rotate_degrees,
        shift=values[:, 1:3] * config.translate,
        shear=values[:, 3:5] * config.shear_degrees,
    )


@dataclass(frozen=True)
class MixChoice:
    """partner: (n,) positions among the rows of the path, itself where a row is not mixed.

    weight: (n,) share of the own row in Mixup, 1 for others. boxes: (n, 4), empty but in CutMix.
    share: (n,) float32 weight of the own label.
    """

    partner: IntArray
    weight: FloatArray
    boxes: IntArray
    share: FloatArray


def choose_mix(config: MixConfig, draws: Draws, op: str, size: tuple[int, int]) -> MixChoice:
    """Mixup, CutMix or nothing for each row of a path, with its mirror image."""
    rows = len(draws.rows)
    own = np.arange(rows, dtype=np.int64)
    weight, boxes = np.ones(rows, dtype=np.float32), np.zeros((rows, 4), dtype=np.int64)
    if not config.active:
        return MixChoice(own, weight, boxes, weight)
    partner = partners(draws.rows)
    coins = draws.uniform(op, 5)  # mixed at all, which of the two, weight, centre of the box
    mixed = (coins[:, 0] < config.probability) & (partner != own)
    switch = config.switch if config.mixup_alpha > 0 else 1.0
    switch = switch if config.cutmix_alpha > 0 else 0.0
    cut = mixed & (coins[:, 1] < switch)
    blended = mixed & ~cut
    if config.mixup_alpha > 0:
        weight[blended] = symmetric_beta(coins[blended, 2], config.mixup_alpha)
    if config.cutmix_alpha > 0:
        kept = symmetric_beta(coins[cut, 2], config.cutmix_alpha)
        boxes[cut] = cutmix_boxes(kept, coins[cut, 3:], size)
    share = np.where(cut, kept_share(boxes, size), weight).astype(np.float32)
    return MixChoice(np.where(mixed, partner, own), weight, boxes, share)
