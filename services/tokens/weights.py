"""Reading of weight files without running anything that stands in them."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from services.errors import FormatError, NotFoundError

_HEADER_BYTES = 8  # a safetensors file starts with the little-endian length of its JSON header


def _bytes(source: bytes | str | Path) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, "what was given"
    path = Path(source)
    if not path.is_file():
        raise NotFoundError(f"no file {path}: nothing was loaded; check the path")
    return path.read_bytes(), str(path)


def read_safetensors(source: bytes | str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and text metadata of a safetensors file or of its bytes.

    Raises `NotFoundError` where the file is missing and `FormatError` where it is not safetensors.
    """
    data, name = _bytes(source)
    try:
        tensors = load(data)
    except (SafetensorError, ValueError) as error:
        raise FormatError(
            f"{name} is not a safetensors file ({error}): nothing was loaded; give a .safetensors"
            " that this program saved; `seit import-tokenizer` makes one of a published tokenizer"
        ) from error
    (length,) = struct.unpack("<Q", data[:_HEADER_BYTES])
    header = json.loads(data[_HEADER_BYTES : _HEADER_BYTES + length])
    return tensors, header.get("__metadata__") or {}


def to_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file; the same tensors and metadata always give the same bytes.

    Files are named by their hash, so a repeated save must not make another file. The library
    itself writes metadata in an order that changes from call to call.
    """
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    data = save(whole, dict(metadata))
    (length,) = struct.unpack("<Q", data[:_HEADER_BYTES])
    header = json.loads(data[_HEADER_BYTES : _HEADER_BYTES + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_BYTES)  # tensors start aligned
    return struct.pack("<Q", len(text)) + text + data[_HEADER_BYTES + length :]


def read_torch(path: str | Path) -> object:
    """What `torch.save` wrote, as long as it is tensors, numbers, text and containers of them.

    A file that holds pickled objects of other classes is refused with `FormatError`, because to
    load it means to run code from it; the message says how its owner can save it again. So is one
    that is damaged, however torch stumbles over it, or whose tensors are not those that were saved.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"no file {path}: nothing was loaded; check the path")
    try:
        check_records(path)
    except FormatError as error:
        raise FormatError(
            f"{path}: {error}: nothing was loaded; copy the file again or, if its owner saved it"
            " without checksums (torch.serialization.set_crc32_options), have it saved with them"
        ) from error
    try:
        loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise  # says nothing of the file's bytes
    except MemoryError as error:
        raise FormatError(
            f"{path} asks for more memory than there is: nothing was loaded; it is damaged, or too "
            f"large for this machine ({path.stat().st_size} bytes)"
        ) from error
    # Of a damaged file torch.load raises whatever its bytes lead to: struct.error, IndexError,
    # KeyError, TypeError, AssertionError and more, and it names none of them.
    except Exception as error:
        remedy = (
            "python -c \"import torch; m = torch.load('IN', map_location='cpu', "
            "weights_only=False); m = m.get('state_dict', m.get('model', m)) if "
            "isinstance(m, dict) else m; m = m if isinstance(m, dict) else m.state_dict(); "
            "torch.save({k: v for k, v in m.items() if torch.is_tensor(v)}, 'OUT')\""
        )
        raise FormatError(
            f"{path} is damaged or holds more than tensors, which would run code when loaded: "
            f"refused ({type(error).__name__}). If you trust its source, save its tensors "
            f"alone: {remedy}"
        ) from error
    return loaded


def check_records(source: Path | BinaryIO) -> None:
    """Hold what `torch.save` wrote against the checksums that it gave its records.

    `torch.load` itself compares none, and gives flipped bits of a tensor as its values. Files from
    before 2020 have no checksums; of what is no such file at all `torch.load` tells.
    Raises: FormatError.
    """
    try:
        if not zipfile.is_zipfile(source):
            return
        with zipfile.ZipFile(source) as archive:
            damaged = archive.testzip()
    except (MemoryError, PermissionError):
        raise  # says nothing of the file's bytes
    except Exception as error:  # whatever damaged bytes lead to, and torch.load may pass over
        raise FormatError(f"its records cannot be listed ({type(error).__name__})") from error
    finally:
        if not isinstance(source, Path):
            source.seek(0)
    if damaged:
        raise FormatError(f"the bytes of {damaged} do not have the checksum that they were given")


def state_dict_of(loaded: object, name: str) -> dict[str, Tensor]:
    """The state dict inside a checkpoint: the mapping itself, or its entry `state_dict`."""
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise FormatError(
            f"{name} holds a {type(loaded).__name__}, not a state dict: nothing was loaded; "
            "give a checkpoint whose top level or `state_dict` maps names to tensors"
        )
    return {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
