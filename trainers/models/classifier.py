"""A vision transformer that classifies tokens (paper, 3.1 and appendix 0.C).

Letters: N rows, H x W grid (tokens), D channels, P patches, C width of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from services.errors import InvalidInputError
from trainers.models.embed import (
    Grid,
    PatchEmbed,
    TokenEmbedding,
    check_rate,
    make_blocks,
    patch_grid,
)
from trainers.models.sizes import ViTSize

PRETRAINED_HEAD_STD = 2e-5
"""Of a new head on a pre-trained encoder: the first steps leave the encoder nearly untouched."""


@dataclass(frozen=True)
class ClassifierConfig:
    """Sizes of a classifier.

    input: "ids" reads token ids through a learned embedding (fine-tuning from MTM), "embeddings"
    reads augmented code vectors through the overlapping Stem-Adapter (from scratch), "pixels" reads
    pictures as a plain vision transformer does: there a token is a pixel.
    grid: height and width (tokens) of the input, after the crop. codes: K, for "ids" only.
    channels: D, 3 of pixels. patch: side of a patch (tokens). drop_path: stochastic depth of the
    last block.
    """

    input: Literal["ids", "embeddings", "pixels"]
    grid: Grid
    codes: int
    channels: int
    classes: int
    encoder: ViTSize
    patch: int = 2
    token_dropout: float = 0.1
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        check_rate("token_dropout", self.token_dropout)
        check_rate("drop_path", self.drop_path)
        if self.classes < 1:
            raise InvalidInputError(
                f"{self.classes} classes: there is nothing to tell apart; give at least 1, or "
                "ingest the data with labels"
            )

    @property
    def patches(self) -> Grid:
        """Patches along height and width."""
        return patch_grid(self.grid, self.patch)


class TokenClassifier(nn.Module):
    """The classifier; parameter names equal the published ones.

    `token_emb` exists only where the input is ids.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        from_ids = config.input == "ids"
        if from_ids:
            self.token_emb = TokenEmbedding(config.codes, config.channels, config.token_dropout)
        width = config.encoder.dim
        overlap = config.input == "embeddings"
        self.patch_embed = PatchEmbed(config.channels, width, config.patch, overlap)
        rows, columns = config.patches
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + rows * columns, width))
        self.blocks = make_blocks(config.encoder, drop_path=config.drop_path)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, config.classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def reset_head(self, std: float = PRETRAINED_HEAD_STD) -> None:
        """Start the head anew: weights of standard deviation `std`, bias 0."""
        nn.init.trunc_normal_(self.head.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, classes) of ids (N, H, W) int64, or embeddings or pixels (N, D, H, W) float.

        Raises InvalidInputError for an input of another shape than the config's.
        """
        x = self.embed(inputs)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)

    def classify(self, x_NPC: Tensor) -> Tensor:
        """Logits (N, classes) of what the blocks made of the sequence (N, 1 + P, C)."""
        # The mean is taken before the norm (facts of the published model), over patches alone.
        logits: Tensor = self.head(self.norm(x_NPC[:, 1:].mean(dim=1)))
        return logits

    def embed(self, inputs: Tensor) -> Tensor:
        """The sequence that the blocks read: (N, 1 + P, C), class token first."""
        config = self.config
        from_ids = config.input == "ids"
        wanted = config.grid if from_ids else (config.channels, *config.grid)
        if inputs.shape[1:] != wanted:
            raise InvalidInputError(
                f"a classifier of {config.input} {wanted} was given rows of "
                f"{tuple(inputs.shape[1:])}: nothing was computed; let the augmentation give "
                f"{config.input} of that crop, or build the model for this one"
            )
        maps = self.token_emb(inputs).permute(0, 3, 1, 2) if from_ids else inputs
        x = self.patch_embed(maps)  # (N, P, C)
        cls = self.cls_token.to(x.dtype).expand(len(x), -1, -1)
        embedded: Tensor = torch.cat([cls, x], dim=1) + self.pos_embed
        return embedded


def soft_cross_entropy(
    logits: Tensor, label: Tensor, label_b: Tensor, mix: Tensor, smoothing: float
) -> Tensor:
    """(N,) cross-entropy, in nats, against mixed and smoothed targets.

    logits: (N, C). The target of a row is `mix` of `label` and the rest of `label_b`, of which
    `smoothing` is spread evenly over the C classes.
    """
    log_p = logits.float().log_softmax(1)
    named = log_p.gather(1, torch.stack([label, label_b], dim=1))  # (N, 2)
    hit = mix * named[:, 0] + (1 - mix) * named[:, 1]
    return -((1 - smoothing) * hit + smoothing * log_p.mean(1))


def right_answers(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) float32 each: whether the label comes first, and among the first five."""
    best = logits.topk(min(5, logits.shape[1])).indices == label[:, None]  # (N, <= 5)
    return best[:, 0].float(), best.any(1).float()
