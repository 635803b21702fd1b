"""What every tokenizer offers, and how tokenizers are saved, loaded and narrowed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from services.errors import FormatError, InvalidInputError
from services.tokens.codebook import Codebook, check_format
from services.tokens.dct import DCT, DCTConfig
from services.tokens.vitvqgan import ViTSize, ViTVQGAN, ViTVQGANConfig, patch_grid, resize_positions
from services.tokens.vqgan import VQGAN, VQGANConfig
from services.tokens.weights import read_safetensors, read_torch, state_dict_of, to_safetensors
from services.types import IntArray
from services.wire.seit import v1 as wire

TOKENIZER_FORMAT = 1


class Tokenizer(Protocol):
    """Pictures <-> grids of token ids, of any grid and codebook size.

    kind: name in manifests. spec: sizes. codebook: the code vectors.
    encode: (N, C, H, W) float in [0, 1] -> (N, h, w) int64. decode: the way back.
    """

    kind: str

    @property
    def spec(self) -> wire.TokenSpec: ...

    @property
    def codebook(self) -> Codebook: ...

    def encode(self, images_NCHW: Tensor, /) -> Tensor: ...

    def decode(self, ids_Nhw: Tensor, /) -> Tensor: ...


TokenizerModel = ViTVQGAN | VQGAN | DCT
"""The tokenizers that there are; each is a `Tokenizer` and a torch module."""

TokenizerConfig = ViTVQGANConfig | VQGANConfig | DCTConfig


@dataclass(frozen=True)
class _Kind:
    """How one kind is built, and under which name its code vectors stand."""

    model: type[Any]
    config: type[Any]
    codes: str


_KINDS = {
    ViTVQGAN.kind: _Kind(ViTVQGAN, ViTVQGANConfig, "quantizer.embedding.weight"),
    VQGAN.kind: _Kind(VQGAN, VQGANConfig, "quantize.embedding.weight"),
    DCT.kind: _Kind(DCT, DCTConfig, "quantizer.embedding.weight"),
}


def _kind(name: str) -> _Kind:
    if name not in _KINDS:
        raise InvalidInputError(
            f"tokenizer kind {name!r} is not one of {', '.join(_KINDS)}: nothing was loaded"
        )
    return _KINDS[name]


def _build(kind: _Kind, config: TokenizerConfig, state: Mapping[str, Tensor]) -> TokenizerModel:
    """A model in evaluation mode with exactly these tensors; `FormatError` if they do not fit."""
    # Compared on the meta device first: a config that lies about sizes allocates nothing.
    try:
        with torch.device("meta"):
            wanted = {name: value.shape for name, value in kind.model(config).state_dict().items()}
    except (RuntimeError, OverflowError, TypeError) as error:
        raise FormatError(
            f"no tokenizer can be built from its config ({error}): nothing was loaded"
        ) from error
    found = {name: value.shape for name, value in state.items()}
    for name in wanted.keys() | found.keys():
        if wanted.get(name) != found.get(name):
            raise FormatError(
                f"tokenizer weights do not fit their config: {name} should be "
                f"{_shape(wanted.get(name))}, found {_shape(found.get(name))}; nothing was "
                "loaded; give weights and config of one model"
            )
    model: TokenizerModel = kind.model(config)
    model.load_state_dict(state)
    return model.eval()


def _shape(shape: torch.Size | None) -> str:
    return "absent" if shape is None else str(tuple(shape))


def save_tokenizer(model: TokenizerModel) -> bytes:
    """A safetensors file: the weights, with kind and config as its text metadata."""
    metadata = {
        "seit": "tokenizer",
        "format": str(TOKENIZER_FORMAT),
        "kind": model.kind,
        "config": json.dumps(asdict(model.config), sort_keys=True),
    }
    return to_safetensors(model.state_dict(), metadata)


def load_tokenizer(source: bytes | str | Path) -> TokenizerModel:
    """Read what `save_tokenizer` wrote, on the CPU in evaluation mode.

    Raises `FormatError` for any other file, a newer format, or weights that do not fit.
    """
    state, metadata = read_safetensors(source)
    check_format(metadata, "tokenizer", TOKENIZER_FORMAT)
    kind = _kind(metadata.get("kind", ""))
    try:
        config: TokenizerConfig = TypeAdapter(kind.config).validate_json(metadata["config"])
    except (ValidationError, InvalidInputError, KeyError) as error:
        raise FormatError(
            f"the tokenizer's config is not valid ({error}): nothing was loaded; save it again"
        ) from error
    return _build(kind, config, state)


def load_published(
    path: str | Path, kind: str, image_size: tuple[int, int] | None = None
) -> TokenizerModel:
    """Read a published checkpoint ("vitvqgan" or "vqgan"): `torch.save` or safetensors.

    Only tensors are read; a pickled module is refused (see `read_torch`). All sizes come from the
    shapes of the weights; attention heads are 64 wide and groups 32, as published.
    image_size: (height, width) in pixels to use it at; by default what it was trained at. At
    another size the position tables of "vitvqgan" are interpolated.
    """
    if Path(path).suffix == ".safetensors":
        state, _ = read_safetensors(path)
    else:
        state = state_dict_of(read_torch(path), str(path))
    if kind not in _INFER:
        raise InvalidInputError(
            f"kind={kind!r}: published checkpoints exist for vitvqgan and vqgan; nothing was loaded"
        )
    # Lightning checkpoints also carry the discriminator and the perceptual network.
    roots = {"encoder", "decoder", "pre_quant", "post_quant", "quantizer"}
    roots |= {"quant_conv", "post_quant_conv", "quantize"}
    state = {name: value.float() for name, value in state.items() if name.split(".")[0] in roots}
    try:
        config = _INFER[kind](state, image_size)
    except (KeyError, IndexError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise FormatError(
            f"{path} does not hold the weights of a {kind} tokenizer ({error}): nothing was "
            "loaded; check the kind"
        ) from error
    return _build(_kind(kind), config, state)


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Entries of the module list `prefix`: 1 + the largest index that follows it."""
    return 1 + max(
        int(name[len(prefix) :].split(".")[0]) for name in state if name.startswith(prefix)
    )


def _infer_vitvqgan(state: dict[str, Tensor], image_size: tuple[int, int] | None) -> ViTVQGANConfig:
    """Config of the weights; their position tables are replaced if `image_size` asks for it."""
    default = ViTVQGANConfig()

    def size(name: str) -> ViTSize:
        layers = f"{name}.transformer.layers."
        hidden, dim = state[f"{layers}0.1.fn.net.0.weight"].shape
        width = state[f"{layers}0.0.fn.to_out.weight"].shape[1]
        return ViTSize(dim, _count(state, layers), width // default.dim_head, hidden)

    _, pixels, patch, _ = state["encoder.to_patch_embedding.0.weight"].shape
    codes, channels = state["quantizer.embedding.weight"].shape
    side = math.isqrt(state["encoder.en_pos_embedding"].shape[1])
    image_size = image_size or (side * patch, side * patch)
    grid = patch_grid(image_size, patch)
    if grid != (side, side):
        for name in ("encoder.en_pos_embedding", "decoder.de_pos_embedding"):
            state[name] = resize_positions(state[name], (side, side), grid)
    return ViTVQGANConfig(
        image_size=image_size,
        patch=patch,
        encoder=size("encoder"),
        decoder=size("decoder"),
        codes=codes,
        channels=channels,
        pixels=pixels,
    )


def _infer_vqgan(state: dict[str, Tensor], image_size: tuple[int, int] | None) -> VQGANConfig:
    width, pixels = state["encoder.conv_in.weight"].shape[:2]
    levels = range(_count(state, "encoder.down."))
    outs = [state[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in levels]
    codes, channels = state["quantize.embedding.weight"].shape
    return VQGANConfig(
        image_size=image_size or VQGANConfig().image_size,
        width=width,
        multipliers=tuple(out // width for out in outs),
        blocks=_count(state, "encoder.down.0.block."),
        attention=tuple(
            level for level in levels if f"encoder.down.{level}.attn.0.q.weight" in state
        ),
        codes=codes,
        channels=channels,
        latent=state["encoder.conv_out.weight"].shape[0],
        pixels=pixels,
    )


_Infer = Callable[[dict[str, Tensor], tuple[int, int] | None], TokenizerConfig]
_INFER: dict[str, _Infer] = {ViTVQGAN.kind: _infer_vitvqgan, VQGAN.kind: _infer_vqgan}


def with_codebook(model: TokenizerModel, codebook: Codebook) -> TokenizerModel:
    """A copy of the tokenizer that chooses among these code vectors (e.g. a release's 391).

    The copy stands on the CPU.

    Raises `InvalidInputError` where width or metric differ from the tokenizer's own.
    """
    own = model.codebook
    if (codebook.channels, codebook.metric) != (own.channels, own.metric):
        raise InvalidInputError(
            f"a codebook of {codebook.channels} channels compared by {codebook.metric} does not "
            f"fit a tokenizer of {own.channels} channels and {own.metric}: its ids would mean "
            "nothing; give the codebook that was made with this tokenizer"
        )
    kind = _kind(model.kind)
    config = replace(model.config, codes=codebook.codes)
    return _build(kind, config, {**model.state_dict(), kind.codes: codebook.weight})


def restrict(model: TokenizerModel, used: IntArray) -> TokenizerModel:
    """A copy that knows only the codes `used`, re-numbered in that order (8192 -> 391).

    Pictures whose codes are all in `used` get the same codes, as `renumber` would number them;
    others get the nearest that is left, so every picture still has tokens.
    """
    return with_codebook(model, model.codebook.restrict(used))


def resized(model: TokenizerModel, image_size: tuple[int, int]) -> TokenizerModel:
    """A copy, on the CPU, for pictures of another (height, width); codes stay what they are.

    Position tables of "vitvqgan" are interpolated, as `load_published` does.
    Raises `InvalidInputError` where the size does not divide into tokens.
    """
    config = replace(model.config, image_size=image_size)
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    if isinstance(model, ViTVQGAN):
        grid = patch_grid(image_size, model.config.patch)
        for name in ("encoder.en_pos_embedding", "decoder.de_pos_embedding"):
            state[name] = resize_positions(state[name], model.config.grid, grid)
    return _build(_kind(model.kind), config, state)
