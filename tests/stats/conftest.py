"""A root with real files for the tests of this room."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.shards.store import Store, open_store


@pytest.fixture
def root(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))
