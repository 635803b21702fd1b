"""Counting answers, against the definition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from services.errors import InvalidInputError
from services.tokens.codebook import Codebook
from services.wire.seit import v1 as wire
from trainers.evaluation import Batch, Classifier, Rows, accepted, count_answers

SPEC = wire.TokenSpec(
    grid_height=1, grid_width=1, codes=64, channels=2, image_height=4, image_width=4
)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Reads:
    """What the counting asks of a model's config."""

    input: str = "ids"


class Table(nn.Module):
    """A classifier of one token: logits by id."""

    def __init__(self, logits_KC: Tensor) -> None:
        super().__init__()
        self.logits_KC, self.config = logits_KC, Reads()

    def forward(self, ids_N11: Tensor) -> Tensor:
        return self.logits_KC[ids_N11[:, 0, 0]]


def rows(ids: Tensor, label: Tensor, classes: tuple[str, ...], batch: int) -> Rows:
    def batches() -> Iterator[Batch]:
        for begin in range(0, len(ids), batch):
            part = slice(begin, begin + batch)
            yield Batch(ids[part].view(-1, 1, 1), label[part])

    return Rows(classes, len(ids), Codebook(torch.ones(64, 2)), batches)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    groups=st.integers(1, 6),
    known=st.integers(1, 9),
    count=st.integers(1, 40),
    batch=st.integers(1, 17),
    among=st.booleans(),
)
def test_answers_are_counted_as_defined(
    seed: int, groups: int, known: int, count: int, batch: int, among: bool
) -> None:
    draw = np.random.default_rng(seed)
    names = tuple(f"k{c}" for c in range(known))
    classes = tuple(f"g{g}" for g in range(groups))
    right = draw.random((groups, known)) < 0.4
    right[0, 0] = True
    by_name = {c: [names[k] for k in np.flatnonzero(right[g])] for g, c in enumerate(classes)}
    logits = torch.from_numpy(draw.permuted(np.arange(64 * known).reshape(64, known), axis=1))
    ids, label = draw.integers(0, 64, count), draw.integers(0, groups, count)
    model: Any = Table(logits.float())
    (tally,) = count_answers(
        [Classifier("table", model, SPEC, names)],
        rows(torch.from_numpy(ids), torch.from_numpy(label), classes, batch),
        CPU,
        by_name=by_name,
        among_accepted=among,
    )
    answers, top1, top5 = np.zeros((groups, known)), np.zeros(groups), np.zeros(groups)
    for one, group in zip(ids, label, strict=True):
        if not right[group].any():
            continue  # a class that nothing is right for counts nowhere
        score = logits[one].numpy().astype(float)
        if among:
            score[~right.any(0)] = -np.inf
        best = np.argsort(-score)[: 5 if known >= 5 else known]
        best_open = [c for c in best if np.isfinite(score[c])]
        answers[group, best_open[0]] += 1
        top1[group] += right[group, best_open[0]]
        top5[group] += right[group, best_open].any()
    assert np.array_equal(tally.answers, answers)
    assert np.array_equal(tally.top1, top1)
    assert np.array_equal(tally.top5, top5)


def test_classes_are_matched_by_name_and_not_by_number() -> None:
    table = accepted(["b", "a"], ["a", "b", "c"], None)
    assert table.tolist() == [[False, True, False], [True, False, False]]
    with pytest.raises(InvalidInputError, match="'d' is none of the model's 3"):
        accepted(["a", "d"], ["a", "b", "c"], None)
    with pytest.raises(InvalidInputError, match="names none of the 2 classes"):
        accepted(["a", "b"], ["a", "b"], {"x": ["a"]})


def test_classes_of_one_name_are_told_apart_where_the_data_are_the_models() -> None:
    known = ("crane", "heron", "crane")
    assert accepted(known, known, None).tolist() == torch.eye(3).bool().tolist()
    elsewhere = accepted(["heron", "crane"], known, None)
    assert elsewhere.tolist() == [[False, True, False], [True, False, True]]
