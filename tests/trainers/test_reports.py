"""Tables as text: whatever names they hold, which other people chose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from trainers.evaluate_report import Condition, accuracy_tables, draw_confusion, draw_robustness
from trainers.evaluation import Tally
from trainers.progress import closing_table
from trainers.reports import as_text
from trainers.segment_pictures import draw_predictions

_NAMES = st.text("[/]:=b\\", min_size=1, max_size=12)


@given(_NAMES, _NAMES, _NAMES)
def test_names_are_shown_as_they_are(title: str, column: str, cell: str) -> None:
    table = Table(column, title=title, min_width=40)
    table.add_row(cell)
    shown = as_text(table)
    assert all(name in shown for name in (title, column, cell))
    assert title in closing_table(title, {"validation_loss": 0.5})


def test_classes_of_any_name_stand_in_the_table_of_an_evaluation() -> None:
    names = ("cat [small]", "dog :cat:", "a [/b]")
    counts = np.eye(3, dtype=np.int64)
    (total, worst) = accuracy_tables(
        ["run[/]"], [Tally(names, names, counts > 0, counts, counts[0])]
    )
    shown = as_text(total, worst)
    assert all(name in shown for name in (*names, "run[/]"))


def test_a_class_may_be_mostly_taken_for_another_of_its_name() -> None:
    names = ("crane", "crane", "heron")
    answers = np.array([[2, 5, 1], [0, 9, 0], [0, 0, 9]])
    tally = Tally(names, names, np.eye(3, dtype=bool), answers, answers.sum(1))
    lines = as_text(accuracy_tables(["run"], [tally])[1]).splitlines()
    assert "crane (5)" in next(line for line in lines if "25.0%" in line)


def test_an_answer_that_a_class_map_accepts_is_no_mistake() -> None:
    answers = np.array([[6, 2, 1]])
    right = np.array([[True, False, True]])
    tally = Tally(("n01",), ("cock", "hen", "chick"), right, answers, answers.sum(1))
    shown = as_text(accuracy_tables(["run"], [tally])[1])
    assert "hen (2)" in shown
    assert "cock" not in shown


def test_dollars_in_names_make_no_formula_of_them(tmp_path: Path) -> None:
    names = ("$a^b$", "x $^$ y", r"5\$ or 6$")
    counts = np.eye(3, dtype=np.int64)
    tally = Tally(names, names, counts > 0, counts, counts[0])
    drawn = [draw_confusion("$^$", tally, tmp_path / "confusion.png")]
    found = [Condition(kind, kind, 0, [tally]) for kind in ("clean", "sketch")]
    samples = {"gaussian_noise": [torch.zeros(3, 8, 8)]}
    drawn.append(draw_robustness(["$^$"], found, samples, tmp_path / "robustness.png"))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    mask = np.arange(3, dtype=np.uint8).repeat(3).reshape(1, 3, 3)
    assert draw_predictions(None, mask, mask, names).startswith(b"\x89PNG")


def test_names_beyond_the_font_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    names = ("\U00013000 one", "two \U00013001")  # hieroglyphs, which matplotlib's own font lacks
    counts = np.eye(2, dtype=np.int64)
    tally = Tally(names, names, counts > 0, counts, counts[0])
    draw_confusion("run", tally, tmp_path / "confusion.png")
    assert not recwarn.list
    (told,) = caplog.messages
    assert "confusion.png" in told
    assert all(sign in told for sign in "\U00013000\U00013001")
