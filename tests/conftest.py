"""Fixtures that every room may use."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the vectors that the paper's published code produced; read-only."""
    folder = (ROOT / "../shared/golden").resolve()
    if not folder.is_dir():
        pytest.skip(f"no golden vectors at {folder}: parity with the published code is not checked")
    return folder
