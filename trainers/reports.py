"""What reports share: the machine that computed, and tables as text."""

from __future__ import annotations

import os
import platform

import torch
from rich.console import Console
from rich.table import Table


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


def as_text(*tables: Table, width: int = 100) -> str:
    """Tables as the terminal, or a file, shows them; names in them are never read as markup.

    width: of the text (characters).
    """
    console = Console(width=width, markup=False, emoji=False)
    with console.capture() as captured:
        for table in tables:
            console.print(table)
    return captured.get().rstrip()
