"""The average of a run's weights: what it forgets, and when its decay is the one given."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from services.plan.draws import hash_key
from tests.trainers.runs import PER_EPOCH, ToyTask, classify_run, context
from trainers.average import build_average
from trainers.checkpoint import Checkpoints
from trainers.loop import train
from trainers.recipes.classify import RECIPES

PUBLISHED = RECIPES["scratch-base"]().loop.ema
decays = st.floats(0.9, 0.999999)


def decays_of(decay: float, steps: int) -> list[float]:
    average = build_average(nn.Linear(1, 1), decay, buffers=True)
    return [average.get_decay(step) for step in range(1, steps + 1)]


@settings(deadline=None, max_examples=30)
@given(decay=decays, steps=st.integers(10, 3000))
def test_however_short_the_run_its_first_half_is_forgotten(decay: float, steps: int) -> None:
    share = 1.0
    for one in decays_of(decay, steps)[steps // 2 :]:
        share *= one
    assert share < 0.02
    assert decays_of(decay, steps)[0] == 0.0  # nothing of the initial weights


@settings(deadline=None, max_examples=30)
@given(decay=decays)
def test_the_decay_rises_to_the_one_given_and_stays_there(decay: float) -> None:
    average = build_average(nn.Linear(1, 1), decay, buffers=True)
    reached = round(9 / (1 - decay)) + 2
    assert all(average.get_decay(step) == decay for step in (reached, 2 * reached, 10**9))
    steps = [1, 2, reached // 3, reached // 2, reached - 12]
    assert all(a <= b for a, b in pairwise(map(average.get_decay, sorted(steps))))
    assert average.get_decay(max(steps)) <= decay


def test_the_published_run_is_averaged_as_published() -> None:
    steps = -(-1_281_167 // 1024) * 300
    average = build_average(nn.Linear(1, 1), PUBLISHED, buffers=True)
    same = next(step for step in range(steps) if average.get_decay(step) == PUBLISHED)
    # Both averages weigh all later steps alike, and differ in this share at most.
    assert PUBLISHED ** (steps - same) < 0.003


def test_an_update_weighs_by_the_step(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    average = build_average(model, 0.5, buffers=True)
    value = 0.0
    for step in range(1, 30):
        nn.init.constant_(model.weight, step)
        average.update(model, step)
        decay = min(0.5, (step - 1) / (step + 8))
        value = decay * value + (1 - decay) * step
        assert average.module.weight.item() == pytest.approx(value, rel=1e-5)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[name] - b[name]).square().sum()) for name in a) ** 0.5


def test_a_short_run_validates_and_exports_what_it_learned(tmp_path: Path) -> None:
    run = classify_run(tmp_path, ema=PUBLISHED, epochs=10)
    run = replace(run, optim=replace(run.optim, min_lr=run.optim.base_lr))
    train(run, context(10), ToyTask(dropout=0.0))
    torch.manual_seed(hash_key("weights", run.loop.seed))
    first = ToyTask().build_model(fresh=True).state_dict()
    saved = Checkpoints(str(tmp_path), 2).load(10 * PER_EPOCH)
    assert saved.ema is not None
    assert distance(saved.ema, saved.model) < 0.25 * distance(saved.ema, first)
