"""What reports share: the machine that computed, tables as text, and JSON that all can read."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from services.errors import FormatError
from services.shards.store import Store


def machine() -> dict[str, object]:
    """What was computed on: nothing that names a person or a host."""
    about: dict[str, object] = {
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
    }
    if torch.cuda.is_available():
        about["accelerator"] = torch.cuda.get_device_name()
    return about


def strict_json(content: Any, indent: int | None = None) -> str:
    """JSON text of a nest of mappings and lists: null for a number that is not finite.

    `json.dumps` would write NaN and Infinity, which are no JSON: jq, browsers and most languages
    refuse the whole file.
    """
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def read_json(store: Store, name: str) -> dict[str, Any]:
    """What a program noted in a file. Raises: NotFoundError; FormatError if it is damaged."""
    try:
        found = json.loads(store.read(name))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{store.url}/{name} holds no JSON object ({error}), it is damaged: nothing was"
            " changed; copy it again, or give another folder to start anew in"
        ) from error
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def as_text(*tables: Table, width: int = 100) -> str:
    """Tables as the terminal, or a file, shows them; names in them are never read as markup.

    width: of the text (characters).
    """
    console = Console(width=width, markup=False, emoji=False)
    with console.capture() as captured:
        for table in tables:
            console.print(table)
    return captured.get().rstrip()
