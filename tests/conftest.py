"""Fixtures that every room may use."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from tests.seit_command import Seit, run_seit

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the vectors that the paper's published code produced; read-only."""
    folder = (ROOT / "../shared/golden").resolve()
    if not folder.is_dir():
        pytest.skip(f"no golden vectors at {folder}: parity with the published code is not checked")
    return folder


@pytest.fixture
def seit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Seit:
    """Runs the command line in this process, on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    return functools.partial(run_seit, capsys)
