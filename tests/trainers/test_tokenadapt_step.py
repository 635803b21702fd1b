"""TokenAdapt's trainer: one augmentation for pixels and maps, its files, its report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.augment.tokenadapt import TokenAdapt, codebook_digest
from services.errors import InvalidInputError
from services.plan.draws import Draws
from services.tokens.tokenizer import load_tokenizer
from tests.trainers.picture_runs import SIDE, place, tokenadapt_run, write_pictures, write_tokenizer
from tests.trainers.runs import recorded
from trainers.options import parse
from trainers.picture_config import TokenAdaptRun, ViewConfig
from trainers.recipes.tokenadapt import RECIPES
from trainers.tokenadapt_compare import METHODS, OPERATIONS, alone
from trainers.tokenadapt_step import REPORT, TOKENADAPT, TokenAdaptTask, tokenadapt_worker
from trainers.views import draw_views

STILL = ViewConfig(flip_probability=0, affine_probability=0, crop_probability=0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.safetensors")


def draws(rows: int, first: int = 0) -> Draws:
    return Draws(1, 0, np.arange(first, first + rows, dtype=np.int64))


def test_a_still_view_changes_nothing() -> None:
    pictures = torch.rand(5, 3, 8, 8)
    moved = draw_views(STILL, draws(5), (4, 4), 5).apply(pictures, (8, 8))
    assert torch.allclose(moved, pictures, atol=1e-5)


def test_a_flip_is_a_flip_at_every_resolution() -> None:
    views = draw_views(replace(STILL, flip_probability=1.0), draws(4), (4, 4), 4)
    for side in (4, 8, 16):
        pictures = torch.rand(4, 3, side, side)
        assert torch.allclose(views.apply(pictures, (side, side)), pictures.flip(3), atol=1e-5)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.sampled_from(OPERATIONS))
def test_pixels_and_maps_are_moved_alike(first: int, operation: str) -> None:
    """A smooth picture and its quarter-size map end up as the same picture."""
    views = draw_views(alone(ViewConfig(), operation), draws(6, first), (8, 8), 6)
    fine = torch.linspace(0, 1, 32)[None, None, :, None] * torch.linspace(1, 2, 32)
    fine = fine * torch.arange(1.0, 7.0)[:, None, None, None] / 6  # (6, 1, 32, 32)
    small = torch.nn.functional.avg_pool2d(fine, 4)
    moved = torch.nn.functional.avg_pool2d(views.apply(fine, (32, 32)), 4)
    assert (views.apply(small, (8, 8)) - moved).abs().mean() < 0.02


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_alone_move_something_and_only_that(operation: str) -> None:
    views = draw_views(alone(ViewConfig(), operation), draws(16), (8, 8), 16)
    still = draw_views(STILL, draws(16), (8, 8), 16)
    changed = {
        name
        for name in ("matrices", "boxes", "weight")
        if not torch.equal(getattr(views, name), getattr(still, name))
    }
    expected = {"crop": "boxes", "mixup": "weight"}.get(operation, "matrices")
    assert changed == {expected}


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 4), st.integers(0, 500))
def test_views_do_not_depend_on_who_draws_them(blocks: int, first: int) -> None:
    config, block = ViewConfig(mixup_probability=0.5), 4
    whole = draw_views(config, draws(blocks * block, first), (8, 8), block)
    for at in range(0, blocks * block, block):
        part = draw_views(config, draws(block, first + at), (8, 8), block)
        here = slice(at, at + block)
        assert torch.equal(part.matrices, whole.matrices[here])
        assert torch.equal(part.boxes, whole.boxes[here])
        assert torch.equal(part.weight, whole.weight[here])
        assert torch.equal(part.partner + at, whole.partner[here])


def test_a_map_that_boxes_do_not_fit_is_refused() -> None:
    views = draw_views(ViewConfig(), draws(2), (8, 8), 2)
    with pytest.raises(InvalidInputError, match="no whole multiple"):
        views.apply(torch.zeros(2, 3, 12, 12), (8, 8))


@pytest.mark.parametrize("crop", [None, 3])
def test_a_run_writes_networks_and_a_report(
    tmp_path: Path, images: Path, tokenizer: Path, crop: int | None
) -> None:
    run = tokenadapt_run(tmp_path, images, tokenizer, crop, epochs=3)
    figures = tokenadapt_worker(run, place())
    model = TokenAdapt.from_bytes(tmp_path / TOKENADAPT)
    assert model.codebook == codebook_digest(load_tokenizer(tokenizer).codebook.weight)
    assert model.config.out_grid == ((crop or SIDE // 4),) * 2
    told = json.loads((tmp_path / REPORT).read_text())
    assert set(told["operations"]) == set(OPERATIONS)
    for found in told["operations"].values():
        assert all(0 <= found[method]["agreement"] <= 1 for method in METHODS)
        assert all("psnr_db" in found[method] for method in (*METHODS, "tokenizer"))
        assert all(found[method]["images_per_second"] > 0 for method in METHODS)
    assert told["operations"]["crop"]["naive"]["agreement"] == pytest.approx(
        figures["validation_crop_naive_agreement"]
    )
    losses = [entry["loss"] for entry in recorded(tmp_path)]
    assert losses[-1] < losses[0]


def test_a_stopped_run_goes_on_with_the_same_bits(
    tmp_path: Path, images: Path, tokenizer: Path
) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    tokenadapt_worker(tokenadapt_run(whole, images, tokenizer), place())
    asked = iter([False, False, True])
    tokenadapt_worker(
        tokenadapt_run(parted, images, tokenizer), place(stop=lambda: next(asked, True))
    )
    tokenadapt_worker(tokenadapt_run(parted, images, tokenizer), place())
    one, two = (TokenAdapt.from_bytes(out / TOKENADAPT).state_dict() for out in (whole, parted))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_crop_and_scale_must_fit_the_tokenizer(
    tmp_path: Path, images: Path, tokenizer: Path
) -> None:
    run = tokenadapt_run(tmp_path, images, tokenizer)
    for change in ({"scale": 3}, {"crop": 5}):
        wrong = replace(run, model=replace(run.model, **change))
        with pytest.raises(InvalidInputError, match="do not fit"):
            TokenAdaptTask(wrong, load_tokenizer(tokenizer), torch.device("cpu"))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_each_recipe_makes_a_run(name: str) -> None:
    assert parse(TokenAdaptRun, RECIPES, [f"--recipe={name}", "--out", "x"]).out == "x"


def test_the_papers_recipe() -> None:
    run = RECIPES["tokenadapt-base"]()
    assert (run.loop.epochs, run.order.global_batch) == (1, 128)
    assert (run.optim.base_lr, run.optim.weight_decay) == (1e-3, 0.05)
