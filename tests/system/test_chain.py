"""Programs one after another: stopped in the middle, gone on with, and with nothing left to do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import ray

from trainers.chain import HERE, Step, run_steps

pytestmark = pytest.mark.system

_PROGRAM = """
import os, pathlib, sys
folder, allowed = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
assert os.environ["RAY_ADDRESS"], "no cluster"
folder.mkdir(exist_ok=True)
with open(folder / "runs", "a") as runs:
    runs.write("x")
if not allowed.exists():
    sys.exit(3)
(folder / "made").touch()
"""


def _steps(out: Path, allowed: dict[str, Path]) -> list[Step]:
    return [
        Step(
            name,
            f"makes {name}",
            [sys.executable, "-c", _PROGRAM, str(out / name), str(may)],
            out / name,
            ["made"],
        )
        for name, may in allowed.items()
    ]


def _runs(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_size for path in out.glob("*/runs")}


def test_a_chain_goes_on_where_it_failed_and_needs_no_cluster_at_its_end_nor_its_old_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEIT_CACHE_DIR", "")  # the chain sets it
    place = tmp_path / "here"
    out, later = place / "out", place / "later"
    out.mkdir(parents=True)
    steps = _steps(out, {"first": out, "second": later, "third": out})
    assert run_steps(steps, out, "pictures")[0] == 3
    assert _runs(out) == {"first": 1, "second": 1}

    later.touch()
    code, seconds = run_steps(steps, out, "pictures")
    assert (code, set(seconds)) == (0, {"first", "second", "third"})
    assert _runs(out) == {"first": 1, "second": 2, "third": 1}

    def no_cluster(*_: object, **__: object) -> None:
        raise AssertionError("a cluster was started, and there is nothing to do")

    monkeypatch.setattr(ray, "init", no_cluster)
    assert run_steps(steps, out, "pictures") == (0, seconds)
    assert _runs(out) == {"first": 1, "second": 2, "third": 1}

    place = place.rename(tmp_path / "there")
    out = place / "out"
    steps = _steps(out, {"first": out, "second": place / "later", "third": out})
    assert run_steps(steps, out, "pictures") == (0, seconds)
    assert _runs(out) == {"first": 1, "second": 2, "third": 1}


@pytest.mark.parametrize("place", ["", "/elsewhere/tree"])
def test_notes_with_whole_paths_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """As earlier versions wrote them, there or elsewhere: nothing is removed, nor done again."""
    monkeypatch.setenv("SEIT_CACHE_DIR", "")
    out = tmp_path / "out"
    program = str(HERE / "mtm.py")
    words = ["--out", str(out / "only"), "--loop.epochs", "3"]
    step = Step("only", "", [sys.executable, program, *words], out / "only", ["made"])
    (out / "only").mkdir(parents=True)
    (out / "only" / "made").touch()
    (out / "steps").mkdir()
    noted = [sys.executable, program]
    if place:
        noted = [f"{place}/.venv/bin/python3.11", f"{place}/trainers/mtm.py"]
    mark = {"command": [*noted, *words], "pictures": "pictures"}
    (out / "steps" / "only.json").write_text(json.dumps({"mark": mark, "seconds": 3.0}))
    assert run_steps([step], out, "pictures") == (0, {"only": 3.0})
    assert (out / "only" / "made").exists()
