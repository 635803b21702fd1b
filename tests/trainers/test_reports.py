"""Tables as text: whatever names they hold, which other people chose."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from trainers.evaluate_report import accuracy_tables
from trainers.evaluation import Tally
from trainers.progress import closing_table
from trainers.reports import as_text

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
    (total, worst) = accuracy_tables(["run[/]"], [Tally(names, names, counts, *counts[:2])])
    shown = as_text(total, worst)
    assert all(name in shown for name in (*names, "run[/]"))
