"""AdamW for transformers, and learning rates: how high, for which parameter, at which step."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from services.errors import InvalidInputError

# Of the encoder alone: MTM's `decoder_blocks` and UperNet's `decoder.psp.blocks` stand on it.
_BLOCK = re.compile(r"^(?:encoder\.)?blocks\.(\d+)\.")
_STEM = frozenset({"token_emb", "patch_embed", "cls_token", "pos_embed"})
_POSITIONS = re.compile(r"pos_embed\w*$")


def peak_rate(base: float, batch: int, base_batch: int, power: float) -> float:
    """Highest learning rate of a run: base * (batch / base_batch) ** power.

    power 1 is the linear rule (MTM 1.5e-4 at 256, from scratch 7.5e-4 at 512), 0.5 the square-root
    rule (fine-tuning 1e-3 at 64, published as 1e-3 * sqrt(batch) / 8), 0 a fixed rate.
    batch, base_batch: rows of a global batch.
    """
    if batch < 1 or base_batch < 1 or base < 0:
        raise InvalidInputError(
            f"a base rate of {base} at {base_batch} rows for a batch of {batch}: no learning rate "
            "follows; give batches of at least 1 row and a rate of at least 0"
        )
    return float(base * (batch / base_batch) ** power)


def cosine_factor(step: int, total_steps: int, warmup_steps: int, floor: float = 0.0) -> float:
    """Share of the peak rate at a step, from 0: linear warm-up, then half a cosine to `floor`.

    The first step already learns a little, step `warmup_steps` is at the peak, and steps from
    `total_steps` on stay at the floor. floor: lowest rate / peak rate.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, progress))
    return floor + (1.0 - floor) * cosine


def polynomial_factor(
    step: int, total_steps: int, warmup_steps: int, power: float, floor: float = 0.0
) -> float:
    """Share of the peak rate at a step, from 0: linear warm-up, then (share left) ** power.

    As in mmsegmentation, the share left counts all steps, those of the warm-up too, and the
    warm-up rises to where the polynomial stands then. floor: lowest rate / peak rate.
    """
    left = max(0.0, 1.0 - step / max(1, total_steps))
    factor = floor + (1.0 - floor) * math.pow(left, power)
    return factor * (step + 1) / (warmup_steps + 1) if step < warmup_steps else factor


def layer_of(name: str, depth: int) -> int:
    """Layer of a parameter for layer decay: 0 the stem, 1..depth the blocks, depth + 1 the rest."""
    if _STEM.intersection(name.split(".")):
        return 0
    block = _BLOCK.search(name)
    return int(block[1]) + 1 if block else depth + 1


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay acts on a parameter: on matrices and kernels alone.

    Biases, norms, class and mask tokens (vectors, whatever their number of dimensions) and
    tables of positions are added to activations, so pulling them to zero shrinks nothing.
    """
    return parameter.numel() > max(parameter.shape, default=1) and not _POSITIONS.search(name)


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for an optimizer, in an order that depends on the model's names alone.

    Each group holds `params`, `weight_decay` and `lr_scale`, the share of the learning rate that
    it gets: layer_decay ** (layers above it) (BEiT, Bao et al. 2022). Frozen parameters are left
    out.
    """
    if not 0.0 < layer_decay <= 1.0 or weight_decay < 0.0:
        raise InvalidInputError(
            f"layer_decay {layer_decay}, weight_decay {weight_decay}: the first must be in (0, 1] "
            "and the second at least 0, or lower layers would not learn, or weights would grow; "
            "the published values are 0.65 and 0.1"
        )
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    blocks = [int(block[1]) for name, _ in trained if (block := _BLOCK.search(name))]
    depth = max(blocks, default=-1) + 1
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in trained:
        scale = layer_decay ** (depth + 1 - layer_of(name, depth))
        decay = weight_decay if decays(name, parameter) else 0.0
        group = groups.setdefault(
            (scale, decay), {"params": [], "weight_decay": decay, "lr_scale": scale}
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def build_adamw(
    model: nn.Module,
    rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    layer_decay: float = 1.0,
) -> torch.optim.AdamW:
    """Fused AdamW over `parameter_groups`; each group starts at its share of `rate`.

    The model must already be on its device.
    """
    groups = parameter_groups(model, weight_decay, layer_decay)
    for group in groups:
        group["lr"] = rate * group["lr_scale"]
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)


def clip_gradient(parameters: Sequence[nn.Parameter], limit: float) -> torch.Tensor:
    """() norm of the whole gradient as it was; it is scaled to norm `limit` where it is above.

    limit: 0 leaves it alone.
    """
    if limit:
        return nn.utils.clip_grad_norm_(parameters, limit)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def update(optimizer: torch.optim.AdamW, rate: float, norm: torch.Tensor) -> None:
    """One step of an optimizer of `build_adamw`, and gradients cleared; nothing waits for a device.

    rate: learning rate where `lr_scale` is 1. norm: () of the gradient; where it is not finite the
    fused optimizer leaves weights and moments alone.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
