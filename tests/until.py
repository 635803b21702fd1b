"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(found: Callable[[], Any], what: str = "sign of it", seconds: float = 60) -> Any:
    """What `found` returns, as soon as it is true; AssertionError after so long."""
    end = time.monotonic() + seconds
    while not (got := found()):
        assert time.monotonic() < end, f"no {what} within {seconds} s"
        time.sleep(0.02)
    return got
