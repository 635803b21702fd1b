"""Token-EDA: what changes, what does not, and that windows never meet."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.augment.config import MAX_SWAP_SCALE
from services.augment.eda import (
    disjoint_windows,
    replace_synonyms,
    swap_windows,
)


def test_swap_equals_the_published(augment_golden: dict[str, Tensor]) -> None:
    windows = augment_golden["swap_params_size_y0x0y1x1"].long()[None]
    swapped = swap_windows(augment_golden["tokens"][:1].long(), windows)
    assert torch.equal(swapped[0], augment_golden["swap_tokens"].long())


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    scale=st.floats(0, MAX_SWAP_SCALE),
)
def test_windows_are_inside_and_disjoint(seed: int, height: int, width: int, scale: float) -> None:
    draws = np.random.default_rng(seed).random((200, 3), dtype=np.float32)
    draws[0] = np.nextafter(np.float32(1), np.float32(0))
    draws[1] = 0
    side, y0, x0, y1, x1 = disjoint_windows(draws, (height, width), scale).T
    for y, x in ((y0, x0), (y1, x1)):
        assert (y >= 0).all()
        assert (x >= 0).all()
        assert (y + side <= height).all()
        assert (x + side <= width).all()
    assert (side <= scale * min(height, width)).all()
    apart = (np.abs(y0 - y1) >= side) | (np.abs(x0 - x1) >= side)
    assert apart.all()


def test_every_free_place_of_the_second_window_is_drawn_alike() -> None:
    count = 60_000
    draws = np.random.default_rng(0).random((count, 3), dtype=np.float32)
    draws[:, 0] = 0.99  # side 2 in a 6 x 7 grid
    draws[:, 1] = 0.5  # one place in the middle for the first window
    side, y0, x0, y1, x1 = disjoint_windows(draws, (6, 7), 1 / 3).T
    assert side[0] == 1  # 0.99 * 6 / 3 stays below 2
    places = np.bincount(y1 * 7 + x1, minlength=42)
    free = np.delete(places, y0[0] * 7 + x0[0])
    assert places[y0[0] * 7 + x0[0]] == 0
    assert np.abs(free / (count / 41) - 1).max() < 0.12


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_swapping_twice_restores(seed: int) -> None:
    generator = np.random.default_rng(seed)
    ids = torch.from_numpy(generator.integers(0, 99, (16, 9, 12)))
    windows = torch.from_numpy(
        disjoint_windows(generator.random((16, 3), dtype=np.float32), (9, 12), MAX_SWAP_SCALE)
    )
    once = swap_windows(ids, windows)
    assert torch.equal(once.flatten(1).sort().values, ids.flatten(1).sort().values)
    assert torch.equal(swap_windows(once, windows), ids)


def test_synonyms_replace_the_chosen_tokens_alone() -> None:
    synonyms = torch.tensor([[1, 2], [2, 0], [0, 1]])
    ids = torch.tensor([[[0, 1], [2, 0]]])
    replace = torch.tensor([[[True, False], [True, False]]])
    pick = torch.tensor([[[1, 0], [0, 0]]])
    assert replace_synonyms(ids, synonyms, replace, pick).tolist() == [[[2, 1], [0, 0]]]
