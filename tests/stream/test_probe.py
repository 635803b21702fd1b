"""`seit stream` in threads of its own process."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from services.errors import InvalidInputError
from services.shards.store import open_store
from services.stream.probe import ProbeConfig, probe
from services.wire.seit import v1 as wire
from tests.small_datasets import write_dataset

SPEC = wire.TokenSpec(grid_height=2, grid_width=2, codes=16, channels=8)


def test_a_fast_stream_is_measured_as_long_as_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over many epochs of rows so small that they come at more than a million a second."""
    monkeypatch.setenv("SEIT_CACHE_DIR", str(tmp_path / "cache"))
    write_dataset(open_store(str(tmp_path)), rows=8192, spec=SPEC)
    asked = ProbeConfig(
        root=str(tmp_path),
        dataset="digits",
        recipe="eval",
        crop=2,
        batch=8192,
        block=1024,
        seconds=1.5,
        no_ray=True,
    )
    began = time.monotonic()
    report = probe(asked)
    assert time.monotonic() - began - report.first_batch_seconds >= asked.seconds
    assert report.rows > 3 * 8192


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "0", "1e7"])
def test_a_time_that_is_none_is_refused(seconds: str) -> None:
    with pytest.raises(InvalidInputError, match="valid are more than 0, at most 1,000,000"):
        ProbeConfig(root="r", dataset="digits", seconds=float(seconds))


def test_a_place_where_no_report_can_stand_is_told_before_anything_streams(tmp_path: Path) -> None:
    write_dataset(open_store(str(tmp_path / "data")), rows=64, spec=SPEC)
    (tmp_path / "file").touch()
    asked = ProbeConfig(
        root=str(tmp_path / "data"), dataset="digits", recipe="eval", crop=2, no_ray=True
    )
    with pytest.raises(InvalidInputError, match="a folder: nothing was read"):
        replace(asked, report=str(tmp_path))
    begun: list[int] = []
    unmade = replace(asked, report=str(tmp_path / "file/report.json"))
    with pytest.raises(FileExistsError):
        probe(unmade, lambda rows, _: begun.append(rows))
    assert begun == []
