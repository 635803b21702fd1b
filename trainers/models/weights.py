"""Weights that travel: published checkpoints in and out, and from one model to another.

Our parameter names are the published ones, so reading is checking, and resizing of positions.
"""

from __future__ import annotations

import io
import math
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from services.errors import FormatError, NotFoundError
from services.shards.store import open_store
from services.tokens.weights import read_safetensors, read_torch
from trainers.models.classifier import TokenClassifier
from trainers.models.embed import Grid, resize_positions
from trainers.models.mtm import MTM

State = Mapping[str, Tensor]

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt")
"""Endings of files that torch wrote: the published code's checkpoints, and our own."""

_WRAPPERS = ("module.", "_orig_mod.")  # added by DistributedDataParallel and by torch.compile
_FIXED = ("pos_embed", "decoder_pos_embed")  # sin-cos tables of an MTM state
_LEARNED = ("pos_embed", "decoder_pos_embed_learned")
_HEAD = "head."
_BLOCKS = "blocks."  # of the encoder: a deeper one is another model, not one to be cut short
_TOKENADAPT = ("conversion_function.", "reverse_transform.")  # published models carry it along
_MMSEGMENTATION = ("backbone.", "decode_head.")  # its parts, under these names in every checkpoint
_SHOWN = 5  # names that an error lists


def read_state(path: str | Path, ema: bool = False) -> dict[str, Tensor]:
    """Parameters in a published checkpoint (.pth, .ckpt) or a .safetensors file, on the CPU.

    ema: take the averaged weights, `model_ema` (`ema` in our own), rather than `model`.
    No code of the file is run. Raises NotFoundError; FormatError for a file of another kind.
    """
    if Path(path).suffix == ".safetensors":
        return _unwrapped(read_safetensors(path)[0])
    # Published checkpoints hold the command line of their run; a Namespace is a plain record.
    with torch.serialization.safe_globals([Namespace]):
        loaded = read_torch(path)
    if isinstance(loaded, Mapping):
        if ema or isinstance(loaded.get("model"), Mapping):
            loaded = loaded.get("model_ema", loaded.get("ema")) if ema else loaded.get("model")
        elif isinstance(loaded.get("state_dict"), Mapping):
            loaded = loaded["state_dict"]
    tensors = (
        {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
        if isinstance(loaded, Mapping)
        else {}
    )
    if not tensors:
        wanted = "`model_ema` or `ema`" if ema else "`model`, `state_dict` or the top level"
        raise FormatError(
            f"{path} holds no tensors under {wanted}: nothing was loaded; "
            "give a checkpoint of a training run" + (", or read it without ema" if ema else "")
        )
    return _unwrapped(tensors)


def read_url(url: str, ema: bool = False) -> dict[str, Tensor]:
    """`read_state` of a file on any store. Errors as there; StoreError."""
    folder, _, name = url.rpartition("/")
    store = open_store(folder or ".")
    local = store.local_path(name)
    if local is not None:
        return read_state(local, ema)
    if not store.exists(name):
        raise NotFoundError(f"no file {url}: nothing was loaded; check the URL")
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / name
        copy.write_bytes(store.read(name))
        return read_state(copy, ema)


def published_state(model: MTM | TokenClassifier) -> dict[str, Tensor]:
    """A copy of the model's parameters under published names, float32 on the CPU."""
    return {
        name: value.detach().to("cpu", torch.float32, copy=True).contiguous()
        for name, value in model.state_dict().items()
    }


def dump_published(model: MTM | TokenClassifier) -> bytes:
    """A checkpoint file as the published code reads it: a dict with the state under `model`."""
    buffer = io.BytesIO()
    torch.save({"model": published_state(model)}, buffer)
    return buffer.getvalue()


def load_published(
    model: MTM | TokenClassifier, state: State, source_grid: Grid | None = None
) -> None:
    """Put a state of the same kind of model into `model`, learned positions resized to its grid.

    source_grid: patches (height, width) of the state; a square if not given. The fixed tables of
    an MTM may be missing, and are the model's own where grids differ. Weights of TokenAdapt in the
    state are passed over.
    Raises FormatError naming what is missing, left over or of another shape; the model is then
    as before.
    """
    optional = _FIXED if isinstance(model, MTM) else ()
    own = {name: value for name, value in state.items() if not name.startswith(_TOKENADAPT)}
    _put(model, own, source_grid, optional)


def transfer(target: TokenClassifier, state: State, source_grid: Grid | None = None) -> None:
    """Start `target` from the encoder of an MTM, or of a classifier of other classes.

    Takes stem, class token, positions (resized, then learned on), blocks and norm; the head is
    drawn anew, nearly zero (see `TokenClassifier.reset_head`). Arguments and errors as
    `load_published`.
    """
    load_encoder(target, state, source_grid)
    target.reset_head()


def load_encoder(target: TokenClassifier, state: State, source_grid: Grid | None = None) -> None:
    """All of `transfer` but the head, which stays as it is."""
    foreign = [name for name in state if name.startswith(_MMSEGMENTATION)]
    if foreign:
        raise FormatError(
            f"weights of a segmentation by mmsegmentation ({foreign[0]} and {len(foreign) - 1} more"
            " below `backbone.` and `decode_head.`), whose parts are others than this program's:"
            " nothing was loaded. Give the model that it started from: the folder of a finished run"
            " of mtm.py or classify.py, its model.safetensors, or the published code's"
            " checkpoint (.pth) of a pre-training or a classifier"
        )
    wanted = {name for name in target.state_dict() if not name.startswith(_HEAD)}
    encoder = {n: value for n, value in state.items() if n in wanted or n.startswith(_BLOCKS)}
    target_head = {name: v for name, v in target.state_dict().items() if name not in wanted}
    _put(target, {**encoder, **target_head}, source_grid, optional=())


def _unwrapped(state: State) -> dict[str, Tensor]:
    stripped = {}
    for name, value in state.items():
        while name.startswith(_WRAPPERS):
            name = name.partition(".")[2]
        stripped[name] = value
    return stripped


def _put(
    model: MTM | TokenClassifier, state: State, source_grid: Grid | None, optional: tuple[str, ...]
) -> None:
    own = model.state_dict()
    fitted = {}
    for name, value in state.items():
        same = name in own and value.shape == own[name].shape
        if name in optional and (not same or _moved(source_grid, model)):
            fitted[name] = own[name]
        elif name in _LEARNED and name in own and value.ndim == 3:
            fitted[name] = _resized(name, value, source_grid, model)
        else:
            fitted[name] = value
    faults = [f"{name} is missing" for name in own if name not in fitted and name not in optional]
    faults += [f"{name} has no place in the model" for name in fitted if name not in own]
    faults += [
        f"{name} is {tuple(value.shape)}, the model's is {tuple(own[name].shape)}"
        for name, value in fitted.items()
        if name in own and value.shape != own[name].shape
    ]
    if faults:
        more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise FormatError(
            f"weights do not fit the {type(model).__name__}: {'; '.join(faults[:_SHOWN])}{more}. "
            "Nothing was loaded; build the model with the sizes, codes and input of the weights, "
            "and use transfer() for an encoder under another head"
        )
    model.load_state_dict({**own, **fitted})


def _moved(source_grid: Grid | None, model: MTM | TokenClassifier) -> bool:
    return source_grid is not None and source_grid != model.config.patches


def _resized(
    name: str, table: Tensor, source_grid: Grid | None, model: MTM | TokenClassifier
) -> Tensor:
    patches = table.shape[1] - 1
    target = model.config.patches
    if source_grid is None:
        side = math.isqrt(patches)
        source_grid = target if patches == math.prod(target) else (side, side)
    if math.prod(source_grid) != patches:
        raise FormatError(
            f"{name} holds positions of {patches} patches, not of {source_grid[0]}x"
            f"{source_grid[1]}: it cannot be resized; give the source_grid of its model"
        )
    return resize_positions(table, source_grid, target)
