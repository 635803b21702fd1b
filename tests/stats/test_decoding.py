"""Rows as pictures: as they are, and after each operation, TokenAdapt's included."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from services.augment.tokenadapt import TokenAdapt, TokenAdaptConfig
from services.settings import load_settings
from services.shards.store import Store
from services.stats.app import create_app
from services.stats.decoding import ADAPTED, PLAIN, VIEWS
from tests.stats.pictured import write_digits_dataset

SAMPLES = "/v1/datasets/digits/samples"


@pytest.fixture(scope="module")
def weights() -> bytes:
    """Of networks that were not trained: what they show is no digit, but a picture."""
    torch.manual_seed(0)
    config = TokenAdaptConfig(
        grid=(8, 8), channels=48, codes=96, dim=32, heads=2, mlp=64, out_grid=(8, 8)
    )
    return TokenAdapt(config).to_bytes()


def test_every_view_is_a_picture_of_its_own(root: Store, tmp_path: Path, weights: bytes) -> None:
    write_digits_dataset(root, versions=1)
    file = tmp_path / "tokenadapt.safetensors"
    file.write_bytes(weights)
    environment = {
        "SEIT_CACHE_DIR": str(tmp_path / "cache"),
        "SEIT_STATS_TOKENADAPT": str(file),
    }
    with TestClient(create_app(root, load_settings(environment), [])) as client:
        found = client.get(f"{SAMPLES}?limit=1").json()
        assert (tuple(found["views"]), found["undecodable"]) == (VIEWS, "")

        def picture(view: str, draw: int = 1) -> bytes:
            answer = client.get(f"{SAMPLES}/train/3/picture?view={view}&draw={draw}")
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
            pixels = np.asarray(Image.open(io.BytesIO(answer.content)))
            assert pixels.shape == (32, 32, 3)
            return pixels.tobytes()

        plain = picture(PLAIN)
        assert picture(PLAIN, draw=2) == plain
        for view in VIEWS[1:]:
            # A draw of swap may exchange two windows of the same code.
            drawn = {picture(view, draw) for draw in range(8)}
            assert drawn - {plain}, view
        assert picture(ADAPTED) == picture(ADAPTED), "the same draw shows the same"
        assert picture(ADAPTED) != picture(ADAPTED, draw=2)
        assert client.get(f"{SAMPLES}/train/3/picture?view=none").status_code == 422


def test_weights_that_cannot_be_read_are_told_without_their_address(
    root: Store, tmp_path: Path
) -> None:
    write_digits_dataset(root, versions=1)
    file = tmp_path / "secret-place.safetensors"
    file.write_bytes(b"not weights")
    environment = {
        "SEIT_CACHE_DIR": str(tmp_path / "cache"),
        "SEIT_STATS_TOKENADAPT": str(file),
    }
    with TestClient(create_app(root, load_settings(environment), [])) as client:
        refused = client.get(f"{SAMPLES}/train/3/picture?view={ADAPTED}")
        assert (refused.status_code, "cannot be read" in refused.text) == (404, True)
        assert "secret-place" not in refused.text
        assert client.get(f"{SAMPLES}/train/3/picture").status_code == 200
