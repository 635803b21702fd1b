"""Runs that differ in their seed, put together."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.estimate import by_seed, estimate, names_of

_ARMS = st.dictionaries(
    st.from_regex(r"[a-z]{1,3}(-[a-z0-9]{1,4})?", fullmatch=True).filter(lambda n: "seed" not in n),
    st.sets(st.integers(0, 12), min_size=1, max_size=6),
    max_size=5,
)


@given(_ARMS, st.randoms(use_true_random=False))
def test_each_run_stands_in_one_arm_with_those_that_differ_in_its_seed(
    arms: dict[str, set[int]], shuffler: Random
) -> None:
    names = [f"{name}-seed{seed}" for name, seeds in arms.items() for seed in seeds]
    shuffler.shuffle(names)
    found = by_seed(names)
    assert sorted(place for places in found.values() for place in places) == list(range(len(names)))
    for shown, places in found.items():
        name = names[places[0]].rpartition("-seed")[0]
        assert {names[place] for place in places} == {f"{name}-seed{seed}" for seed in arms[name]}
        assert shown == (name if len(places) > 1 else names[places[0]])


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
def test_chance_alone_is_called_a_difference_once_in_twenty(seeds: int) -> None:
    """Whatever the number of seeds; two standard errors did so in 30 of 100 with two of them."""
    values = np.random.default_rng(seeds).normal(size=(4000, seeds))
    called = np.mean([estimate(row.tolist()).clear for row in values])
    assert called == pytest.approx(0.05, abs=0.015)


def test_one_seed_is_never_clear() -> None:
    assert not estimate([1.0]).clear
    assert not estimate([0.0, 0.0]).clear
    assert estimate([1.0, 1.0]).clear


def test_names_without_a_seed_stand_for_themselves() -> None:
    assert by_seed(["a", "b", "a-seed1b", "seed1"]) == {
        "a": [0],
        "b": [1],
        "a-seed1b": [2],
        "seed1": [3],
    }
    # One of the same name without a seed is none of them.
    assert by_seed(["a-seed0", "a", "a-seed1"]) == {"a-seed*": [0, 2], "a": [1]}


@given(st.lists(st.from_regex(r"([ab]/)?[ab](\.[12])?(-[12])?", fullmatch=True), max_size=6))
def test_no_two_runs_are_called_alike(urls: list[str]) -> None:
    names = names_of(urls)
    assert len(set(names)) == len(urls)
    for url, name in zip(urls, names, strict=True):
        last = url.rpartition("/")[2]
        assert name == last or name.rpartition("-")[0] == last


def test_runs_are_called_as_their_folders() -> None:
    urls = (
        "s3://b/lr0.1-seed0/",
        "runs/lr0.1-seed1",
        "lr0.2-seed0/model.safetensors",
        "x.safetensors",
    )
    names = names_of(urls)
    assert names == ["lr0.1-seed0", "lr0.1-seed1", "lr0.2-seed0", "x"]
    assert by_seed(names) == {"lr0.1": [0, 1], "lr0.2-seed0": [2], "x": [3]}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_an_estimate_is_a_mean_and_its_standard_error(values: list[float]) -> None:
    found = estimate(values)
    assert found.mean == pytest.approx(np.mean(values))
    if len(values) == 1:
        assert math.isnan(found.error)
        assert "±" not in str(found)
    else:
        assert found.error == pytest.approx(np.std(values, ddof=1) / len(values) ** 0.5)
