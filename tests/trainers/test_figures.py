"""Figures as a run's folder keeps them: strict JSON, damage named, and no number a gap."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.errors import FormatError, NotFoundError
from trainers.charts import Curve, _smooth, draw_curves
from trainers.estimate import estimate
from trainers.figures import figure_line, figure_lines, read_curve
from trainers.program import program
from trainers.progress import Recorder
from trainers.reports import strict_json

WHOLE = b'{"step": 1, "loss": 3.5}\n{"step": 2, "loss": 2.5, "lr": 1}\n'
DAMAGE = [
    *(b'{"step": 3, "lo', b"", b"[1]", b"{}", b"7", b"\x00\xff", b"[" * 99_999),
    *(b'{"step": "3"}', b'{"loss": 1.0}', b'{"step": 3, "loss": "low"}'),
    b'{"step": 3, "loss": [1]}',
]


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def strictly(text: str | bytes) -> Any:
    """As a reader that knows JSON alone."""
    return json.loads(text, parse_constant=no_constant)


@given(st.dictionaries(st.text(min_size=1).filter(lambda name: name != "step"), st.floats()))
def test_a_line_is_json_and_comes_back(values: dict[str, float]) -> None:
    line = figure_line(7, values).encode()
    assert strictly(line)["step"] == 7
    ((found, step, figures),) = figure_lines(line, "here")
    assert found + b"\n" == line
    assert step == 7
    for name, value in values.items():
        assert figures[name] == value if math.isfinite(value) else math.isnan(figures[name])
    assert figures.keys() == values.keys()


def test_reports_keep_their_shape_and_lose_what_is_no_number() -> None:
    told = {"a": [math.nan, (1, -math.inf)], "b": {"c": math.inf, "d": 0.5, "e": None}, "f": "NaN"}
    expected = {"a": [None, [1, None]], "b": {"c": None, "d": 0.5, "e": None}, "f": "NaN"}
    assert strictly(strict_json(told, indent=2)) == expected


@pytest.mark.parametrize("cut", [b"", b'{"step": 3, "lo', b'{"step": 3, "loss": 1.5}', b"\x00\xff"])
def test_a_last_line_that_a_kill_cut_off_is_passed_over(tmp_path: Path, cut: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(WHOLE + cut)
    assert read_curve(tmp_path, "loss") == ([1, 2], [3.5, 2.5])
    assert read_curve(tmp_path, "lr") == ([2], [1.0])


@dataclass(frozen=True)
class _Options:
    """Reads a curve."""

    run: Path


@pytest.mark.parametrize("line", DAMAGE)
def test_other_damage_ends_a_program_with_a_word(
    tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(WHOLE + line + b'\n{"step": 4, "loss": 1.0}\n')

    def work(options: _Options) -> None:
        read_curve(options.run, "loss")

    with caplog.at_level(logging.ERROR):
        assert program(_Options, work, ["--run", str(tmp_path)]) == 2
    assert f"{file}: line 3 is no line of figures" in caplog.text
    assert "delete that line" in caplog.text


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is no .*metrics\.jsonl"):
        read_curve(tmp_path, "loss")
    (tmp_path / "metrics.jsonl").write_bytes(WHOLE)
    with pytest.raises(FormatError, match=r"metrics\.jsonl has no validation_top1"):
        read_curve(tmp_path, "validation_top1")


def test_what_earlier_programs_wrote_is_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1}\n')
    steps, (first, second) = read_curve(tmp_path, "loss")
    assert (steps, math.isnan(first), second) == ([1, 2], True, 1.0)


@pytest.mark.parametrize("count", [9, 90])
def test_what_is_no_number_is_a_gap_in_the_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    recorder = Recorder(str(tmp_path), start=0)
    values = {step: math.nan if step % 3 == 0 else 1.0 / step for step in range(1, count + 1)}
    for step, value in values.items():
        recorder.record(step, {"loss": value})
    recorder.close()
    strictly(b"[" + (tmp_path / "metrics.jsonl").read_bytes().strip().replace(b"\n", b",") + b"]")
    kept: list[Any] = []
    monkeypatch.setattr(plt, "close", kept.append)
    draw_curves({"loss": [Curve("run", [tmp_path], "loss")]}, tmp_path / "curve.png")
    monkeypatch.undo()
    (line,) = kept[0].axes[0].lines
    assert list(line.get_xdata()) == list(values)
    gaps = [math.isnan(value) for value in line.get_ydata()]
    assert gaps == [math.isnan(value) for value in values.values()]
    plt.close(kept[0])


@given(st.lists(st.floats(-9, 9), min_size=1), st.lists(st.integers(0, 99)))
def test_gaps_change_nothing_of_an_average_beside_them(values: list[float], at: list[int]) -> None:
    gapped = list(values)
    for place in at:
        gapped.insert(min(place, len(gapped)), math.nan)
    assert [value for value in _smooth(gapped) if not math.isnan(value)] == _smooth(values)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_seed_without_a_number_leaves_none(value: float) -> None:
    found = estimate([0.5, value, 0.25])
    assert math.isnan(found.mean)
    assert math.isnan(found.error)
    assert not found.clear
    assert strictly(strict_json(found.about())) == {"mean": None, "standard_error": None}
