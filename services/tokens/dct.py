"""DCT coefficients as input (paper, 4.6.2 and Table 8), without any learned network.

Each square block of each of the three channels (Y, Cb, Cr as in JPEG) goes through an orthonormal
type-II DCT, and its lowest `keep` coefficients are divided by their step and rounded. These
vectors, one a block, are the map that a model reads; they are stored as they are, in a column
beside the tokens. For what needs tokens (masked modelling), a codebook of K such vectors is fitted
by k-means, and an id is the nearest of them.

Shape letters: N rows, H and W pixels, h and w blocks, S side of a block, Q kept coefficients,
M any number of vectors, K codes, D = 3*Q channels of a code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from services.errors import InvalidInputError
from services.tokens.codebook import Codebook, nearest_codes, revive_codes, token_spec
from services.tokens.vitvqgan import Quantizer, patch_grid
from services.types import MAX_CODES, MAX_GRID
from services.wire.seit import v1 as wire

PLANES = 3
"""Y, Cb, Cr."""
_MAX_BLOCK = 64
# ITU-R BT.601 as JPEG uses it (JFIF): rows give Y, Cb - 1/2 and Cr - 1/2 of R, G, B.
_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)


@dataclass(frozen=True)
class DCTConfig:
    """Everything that fixes the coefficients.

    image_size: (height, width) in pixels, multiples of `block`. block: S.
    keep: Q, coefficients kept of a channel's block, lowest frequencies first (zigzag).
    step: quantisation step of the mean, in units of the pixel range [0, 1].
    slope: growth of the step with frequency: step * (1 + slope * (u + v)); about JPEG's table at
    quality 50 with the defaults. codes: K.
    """

    image_size: tuple[int, int] = (256, 256)
    block: int = 8
    keep: int = 64
    step: float = 16 / 255
    slope: float = 0.4
    codes: int = 1024

    def __post_init__(self) -> None:
        if not 1 <= self.codes <= MAX_CODES:
            raise InvalidInputError(
                f"codes={self.codes} is outside 1..{MAX_CODES}: ids would not fit 16 bits"
            )
        if max(self.grid) > MAX_GRID:
            raise InvalidInputError(
                f"image_size={self.image_size} with block={self.block} gives a grid side over "
                f"{MAX_GRID} tokens, which shards do not store; use a larger block"
            )
        if self.block > _MAX_BLOCK:
            raise InvalidInputError(f"block={self.block} is outside 1..{_MAX_BLOCK} pixels")
        if not 1 <= self.keep <= self.block**2:
            raise InvalidInputError(
                f"keep={self.keep} coefficients is outside 1..{self.block**2}, what a block of "
                f"side {self.block} has"
            )
        if not (self.step > 0 and self.slope >= 0):
            raise InvalidInputError(
                f"step={self.step} must be above 0 and slope={self.slope} at least 0"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) in blocks."""
        return patch_grid(self.image_size, self.block)

    @property
    def channels(self) -> int:
        """D: kept coefficients of the three channels, Y's first."""
        return PLANES * self.keep


def zigzag(side: int) -> list[tuple[int, int]]:
    """(row, column) frequencies of a block in JPEG's order: by diagonal, turning at each end."""
    return sorted(
        ((row, column) for row in range(side) for column in range(side)),
        key=lambda at: (sum(at), at[0] if sum(at) % 2 else at[1]),
    )


def dct_filters(side: int, keep: int) -> Tensor:
    """Orthonormal type-II DCT basis of the first `keep` zigzag frequencies: (Q, S, S) float32."""
    position = torch.arange(side, dtype=torch.float64)
    waves = torch.cos(math.pi / side * (position + 0.5) * position[:, None])  # (frequency, S)
    waves *= math.sqrt(2 / side)
    waves[0] /= math.sqrt(2)
    rows, columns = zip(*zigzag(side)[:keep], strict=True)
    return torch.einsum("qy,qx->qyx", waves[list(rows)], waves[list(columns)]).float()


class DCT(nn.Module):
    """Pictures in [0, 1] <-> quantised DCT coefficients <-> grids of ids.

    Fresh from the constructor its codebook is empty (all zero); use `fit`, or load weights.
    """

    kind = "dct"
    filters: Tensor
    steps: Tensor
    colours: Tensor

    def __init__(self, config: DCTConfig) -> None:
        super().__init__()
        self.config = config
        self.quantizer = Quantizer(config.codes, config.channels).requires_grad_(False)
        nn.init.zeros_(self.quantizer.embedding.weight)
        frequency = torch.tensor([float(sum(at)) for at in zigzag(config.block)[: config.keep]])
        steps = (config.step * (1 + config.slope * frequency)).repeat(PLANES)
        # All three follow from the config, so they are not saved.
        filters = dct_filters(config.block, config.keep)
        self.register_buffer("filters", filters, persistent=False)  # (Q, S, S)
        self.register_buffer("steps", steps.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("colours", torch.tensor(_YCBCR), persistent=False)

    @property
    def spec(self) -> wire.TokenSpec:
        """Sizes of what `encode` returns."""
        config = self.config
        return token_spec(config.grid, config.codes, config.channels, config.image_size)

    @property
    def codebook(self) -> Codebook:
        """The K vectors of quantised coefficients."""
        return Codebook(self.quantizer.embedding.weight, metric="euclidean")

    def coefficients(self, images_N3HW: Tensor) -> Tensor:
        """Quantised coefficients, whole numbers as float32: (N, 3, H, W) -> (N, D, h, w)."""
        if images_N3HW.shape[-3:] != (PLANES, *self.config.image_size):
            raise InvalidInputError(
                f"got pictures of {tuple(images_N3HW.shape[-3:])}, this tokenizer reads "
                f"{(PLANES, *self.config.image_size)}: resize them, or set it to their size"
            )
        # Grey becomes 0 in Y as it is in Cb and Cr.
        return self.of_planes(torch.einsum("pc,nchw->nphw", self.colours, images_N3HW - 0.5))

    def of_planes(self, planes_N3HW: Tensor) -> Tensor:
        """`coefficients` of Y, Cb and Cr around 0, of any whole number of blocks.

        By products of matrices: GPUs round what enters a convolution to 10 bits, and a coefficient
        of a thousand would come out as another whole number than on a CPU.
        """
        count, planes, height, width = planes_N3HW.shape
        side = self.config.block
        blocks = planes_N3HW.reshape(count, planes, height // side, side, width // side, side)
        found = torch.einsum("nphywx,qyx->npqhw", blocks, self.filters).flatten(1, 2)
        return found.div(self.steps).round()

    def pixels(self, coefficients_NDhw: Tensor) -> Tensor:
        """Inverse of `coefficients` up to rounding and what `keep` left out, clamped to [0, 1]."""
        inverse = torch.linalg.inv(self.colours)
        images = torch.einsum("cp,nphw->nchw", inverse, self.planes(coefficients_NDhw))
        return (images + 0.5).clamp(0, 1)

    def planes(self, coefficients_NDhw: Tensor) -> Tensor:
        """Inverse of `of_planes`, as `pixels` is: (N, D, h, w) -> (N, 3, H, W) around 0."""
        count, _, high, wide = coefficients_NDhw.shape
        scaled = (coefficients_NDhw * self.steps).reshape(count, PLANES, -1, high, wide)
        blocks = torch.einsum("npqhw,qyx->nphywx", scaled, self.filters)
        return blocks.flatten(4, 5).flatten(2, 3)

    @torch.no_grad()
    def encode(self, images_N3HW: Tensor) -> Tensor:
        """Ids (N, h, w) int64 of pictures (N, 3, H, W) in [0, 1]."""
        return self.codebook.quantise(self.coefficients(images_N3HW))

    @torch.no_grad()
    def decode(self, ids_Nhw: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) of ids (N, h, w), clamped to [0, 1]."""
        return self.pixels(self.codebook.embed(ids_Nhw))

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        config: DCTConfig,
        images_N3HW: Tensor,
        generator: torch.Generator,
        rounds: int = 10,
    ) -> DCT:
        """A tokenizer whose codebook is fitted to pictures by `rounds` of k-means.

        Starts at vectors drawn with `generator` (a CPU one); codes left without a vector are
        drawn anew each round. Codes are rounded to whole coefficients at the end.
        """
        tokenizer = cls(config).to(images_N3HW.device)
        weight_KD = tokenizer.quantizer.embedding.weight
        vectors_MD = tokenizer.coefficients(images_N3HW).movedim(1, -1).flatten(0, 2)
        counts_K = torch.zeros(config.codes, dtype=torch.int64, device=weight_KD.device)
        for _ in range(rounds):
            revive_codes(weight_KD, counts_K, vectors_MD, generator)
            ids_M = nearest_codes(vectors_MD, weight_KD, "euclidean")
            counts_K = torch.bincount(ids_M, minlength=config.codes)
            sums_KD = torch.zeros_like(weight_KD).index_add_(0, ids_M, vectors_MD)
            weight_KD.copy_(sums_KD / counts_K.clamp(min=1)[:, None])
        weight_KD.round_()
        return tokenizer
