"""Sizes of the transformers, by the names that the literature uses."""

from __future__ import annotations

from dataclasses import dataclass

from services.errors import InvalidInputError


@dataclass(frozen=True)
class ViTSize:
    """A stack of transformer blocks.

    dim: width. depth: blocks. heads: attention heads. mlp_ratio: width inside a block's MLP / dim.
    Raises InvalidInputError for sizes that no stack can have.
    """

    dim: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if min(self.dim, self.depth, self.heads) < 1 or self.dim % self.heads:
            raise InvalidInputError(
                f"dim {self.dim}, depth {self.depth}, heads {self.heads}: all must be at least 1 "
                "and heads must divide dim, or attention cannot share the width out; "
                f"take one of {sorted(SIZES)} or change dim"
            )
        # The sin-cos table gives a quarter of the width to each of sin x, cos x, sin y, cos y.
        if self.dim % 4:
            raise InvalidInputError(
                f"dim {self.dim} is not a multiple of 4: positions in two dimensions cannot be "
                "encoded; round it to a multiple of 4"
            )
        if self.mlp_ratio * self.dim < 1:
            raise InvalidInputError(
                f"mlp_ratio {self.mlp_ratio} leaves the MLP without a unit; give at least "
                f"{1 / self.dim:.4g}, usually 4"
            )


SIZES = {
    "tiny": ViTSize(dim=192, depth=12, heads=3),
    "small": ViTSize(dim=384, depth=12, heads=6),
    "base": ViTSize(dim=768, depth=12, heads=12),
    "large": ViTSize(dim=1024, depth=24, heads=16),
}
"""ViT-Ti, -S, -B and -L of DeiT (Touvron et al. 2021) and ViT (Dosovitskiy et al. 2021)."""

MTM_DECODER = ViTSize(dim=512, depth=4, heads=16)
"""Decoder of the published MTM."""


def vit_size(name: str) -> ViTSize:
    """The size called `name`. Raises InvalidInputError naming those that exist."""
    if name not in SIZES:
        raise InvalidInputError(
            f"no model size {name!r}: no model was built; choose one of {', '.join(SIZES)}"
        )
    return SIZES[name]
