"""TokenAdapt (section 3.3.2): a space between tokens in which augmentations for pictures work.

f, the `conversion_function`, spreads each token over scale x scale cells; g, the
`reverse_transform`, reads such a map, augmented, and scores the codes of the tokens it stands for.
Parameter names equal those of the published weights.

Shape letters: N rows, D channels of a code, K codes, H and W stored grid, h and w training grid,
s scale, E width of the transformers.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.errors import FormatError, InvalidInputError
from services.tokens.codebook import check_format
from services.tokens.vitvqgan import ViTDecoder, ViTEncoder, ViTSize, init_weights
from services.tokens.weights import read_safetensors, read_torch, state_dict_of, to_safetensors
from services.types import MAX_CODES, MAX_GRID

TOKENADAPT_FORMAT = 1

_LOUDNESS = 4.0  # of tokens as f first sees them, relative to positions (root mean squares)


@dataclass(frozen=True)
class TokenAdaptConfig:
    """Everything that fixes the shapes of f and g.

    grid: (H, W) tokens that f reads. out_grid: (h, w) tokens that g scores, the training crop.
    channels, codes: D and K. dim, heads, mlp, depth, dim_head: of both transformers.
    scale: cells along each side of a token in the space between.
    """

    grid: tuple[int, int]
    out_grid: tuple[int, int]
    channels: int
    codes: int
    dim: int = 384
    heads: int = 6
    mlp: int = 1536
    depth: int = 1
    dim_head: int = 64
    scale: int = 2

    def __post_init__(self) -> None:
        sides = (*self.grid, *self.out_grid)
        if min(sides) < 1 or max(sides) > MAX_GRID:
            raise InvalidInputError(
                f"grid={self.grid}, out_grid={self.out_grid} must have sides of 1..{MAX_GRID}"
            )
        if not 1 <= self.codes <= MAX_CODES:
            raise InvalidInputError(f"codes={self.codes} is outside 1..{MAX_CODES}")
        if min(self.channels, self.dim_head, self.scale) < 1:
            raise InvalidInputError(
                f"channels={self.channels}, dim_head={self.dim_head}, scale={self.scale} "
                "must all be at least 1"
            )


def codebook_digest(weight_KD: Tensor) -> str:
    """32 hexadecimal digits that name a codebook's numbers, whatever device they are on."""
    numbers = weight_KD.detach().float().cpu().contiguous().numpy()
    return hashlib.blake2b(numbers.astype("<f4").tobytes(), digest_size=16).hexdigest()


class TokenAdapt(nn.Module):
    """The two networks f and g.

    codebook: digest of the codebook that the weights were trained with (`codebook_digest`), empty
    where it is not known; it is kept in the file, and recipes refuse another codebook.
    """

    def __init__(self, config: TokenAdaptConfig, codebook: str = "") -> None:
        super().__init__()
        self.config = config
        self.codebook = codebook
        size = ViTSize(config.dim, config.depth, config.heads, config.mlp)
        self.conversion_function = nn.Sequential(
            nn.Linear(config.channels, config.dim),
            ViTDecoder(
                _scaled(config.grid, config.scale),
                config.scale,
                size,
                channels=config.channels,
                dim_head=config.dim_head,
            ),
        )
        self.reverse_transform = nn.Sequential(
            ViTEncoder(
                _scaled(config.out_grid, config.scale),
                config.scale,
                size,
                channels=config.channels,
                dim_head=config.dim_head,
            ),
            nn.Linear(config.dim, config.codes),
        )
        self.conversion_function[0].apply(init_weights)
        self.reverse_transform[1].apply(init_weights)

    @property
    def map_grid(self) -> tuple[int, int]:
        """(height, width) of what `convert` gives."""
        return _scaled(self.config.grid, self.config.scale)

    @property
    def out_map(self) -> tuple[int, int]:
        """(height, width) of what `revert` reads."""
        return _scaled(self.config.out_grid, self.config.scale)

    def convert(self, emb_NDHW: Tensor) -> Tensor:
        """f: embeddings (N, D, H, W) -> map (N, D, s*H, s*W)."""
        out: Tensor = self.conversion_function(emb_NDHW.flatten(2).transpose(1, 2))
        return out

    def revert(self, map_NDhw: Tensor) -> Tensor:
        """g: augmented map (N, D, s*h, s*w) -> scores of the codes (N, h*w, K)."""
        out: Tensor = self.reverse_transform(map_NDhw)
        return out

    @torch.no_grad()
    def start_for(self, weight_KD: Tensor) -> None:
        """Scale fresh weights to the vectors (K, D) that f will read, of whatever length.

        Positions are added to what f's first layer makes of a token. Codes of length 1 would be
        drowned by them, and hundreds of steps pass before f tells one token from another.
        """
        layer, decoder = self.conversion_function
        assert isinstance(layer, nn.Linear)
        assert isinstance(decoder, ViTDecoder)
        positions = decoder.de_pos_embedding.square().mean().sqrt()
        spread = F.linear(weight_KD.to(layer.weight), layer.weight).square().mean().sqrt()
        if spread > 0:
            layer.weight.mul_(_LOUDNESS * positions / spread)

    def compile_networks(self) -> None:
        """Compile f and g when they are first called; their weights and names stay as they are."""
        self.conversion_function.compile()
        self.reverse_transform.compile()

    def resized(self, grid: tuple[int, int], out_grid: tuple[int, int]) -> TokenAdapt:
        """The same weights for other grids: only the fixed position tables differ."""
        other = TokenAdapt(replace(self.config, grid=grid, out_grid=out_grid), self.codebook)
        weights = {
            name: value for name, value in self.state_dict().items() if "pos_emb" not in name
        }
        other.load_state_dict(weights, strict=False)
        return other.to(next(self.parameters()).device)

    def to_bytes(self) -> bytes:
        """A safetensors file of the weights, with the config and the codebook's digest."""
        metadata = {
            "seit": "tokenadapt",
            "format": str(TOKENADAPT_FORMAT),
            "config": json.dumps(asdict(self.config)),
            "codebook": self.codebook,
        }
        return to_safetensors(self.state_dict(), metadata)

    @classmethod
    def from_bytes(cls, source: bytes | str | Path) -> TokenAdapt:
        """Read what `to_bytes` wrote, from bytes or a path; `FormatError` for anything else."""
        tensors, metadata = read_safetensors(source)
        check_format(metadata, "tokenadapt", TOKENADAPT_FORMAT)
        try:
            fields = json.loads(metadata["config"])
            fields |= {name: tuple(fields[name]) for name in ("grid", "out_grid")}
            model = cls(TokenAdaptConfig(**fields), metadata.get("codebook", ""))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"a TokenAdapt file with a config that cannot be read ({error}): nothing was loaded"
            ) from error
        _load(model, tensors)
        return model

    @classmethod
    def from_published(cls, path: str | Path, dim_head: int = 64) -> TokenAdapt:
        """Read the release's `tokenadapt.ckpt`; `resized` gives it for other grids.

        Sizes are those of the tensors, on square grids; only the width of a head cannot be seen
        in them. The file does not say which codebook it belongs to.
        """
        return cls.from_state(state_dict_of(read_torch(path), str(path)), dim_head)

    @classmethod
    def from_state(cls, state: dict[str, Tensor], dim_head: int = 64) -> TokenAdapt:
        """Build from a state dict of published names; `FormatError` where it is not one."""
        f, g = "conversion_function", "reverse_transform"
        try:
            dim, channels = state[f"{f}.0.weight"].shape
            block = f"{f}.1.transformer.layers"
            inner = state[f"{block}.0.0.fn.to_qkv.weight"].shape[0] // 3
            depth = 1 + max(int(n.split(".")[4]) for n in state if n.startswith(f"{block}."))
            config = TokenAdaptConfig(
                grid=_square(state[f"{f}.1.de_pos_embedding"].shape[1]),
                out_grid=_square(state[f"{g}.0.en_pos_embedding"].shape[1]),
                channels=channels,
                codes=state[f"{g}.1.weight"].shape[0],
                dim=dim,
                heads=inner // dim_head,
                mlp=state[f"{block}.0.1.fn.net.0.weight"].shape[0],
                depth=depth,
                dim_head=dim_head,
                scale=state[f"{g}.0.to_patch_embedding.0.weight"].shape[-1],
            )
        except (KeyError, ValueError, IndexError) as error:
            raise FormatError(
                f"not a state dict of TokenAdapt ({error}): nothing was loaded; give the release's "
                "tokenadapt.ckpt"
            ) from error
        model = cls(config)
        _load(model, state)
        return model


def _load(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load all weights or raise `FormatError`."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise FormatError(f"TokenAdapt weights do not fit: nothing was loaded ({error})") from error


def _scaled(grid: tuple[int, int], scale: int) -> tuple[int, int]:
    return grid[0] * scale, grid[1] * scale


def _square(tokens: int) -> tuple[int, int]:
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"{tokens} positions do not make a square grid")
    return side, side
