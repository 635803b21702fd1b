"""What stands in the tables, and what foreign text cannot do in them."""

from __future__ import annotations

import io
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from services import cli_tables as tables
from services.cli_show import show
from services.shards.diff import diff_manifests
from services.shards.store import Entry, open_store
from services.stats.report import storage_report, summarize
from services.wire.seit import v1 as wire
from tests.small_datasets import write_dataset


def shown(renderable: RenderableType, width: int = 120) -> str:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=False).print(renderable)
    return file.getvalue()


@given(st.text(max_size=80))
def test_foreign_text_cannot_steer_the_terminal(text: str) -> None:
    plain = tables.plain(text)
    assert len(plain.plain) == len(text)
    assert plain.plain.isprintable()
    assert plain.spans == []


def test_a_table_of_splits_fits_80_columns(tmp_path: Path) -> None:
    manifest = write_dataset(open_store(str(tmp_path))).manifest
    text = shown(tables.storage_view(storage_report(manifest)), width=80)
    assert "…" not in text
    for words in ("train", "validation", "total", "15", "17"):
        assert words in text


def test_a_table_of_datasets_fits_80_columns(tmp_path: Path) -> None:
    summary = summarize(write_dataset(open_store(str(tmp_path)), "oxford-flowers").manifest)
    text = shown(tables.summary_table([summary, summary]), width=80)
    assert "…" not in text
    assert text.count("oxford-flowers") == 2


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    summary = summarize(write_dataset(open_store(str(tmp_path))).manifest)
    summary.share_of_source = 0.0
    assert "unknown" in shown(tables.summary_table([summary]))


def test_long_lists_are_cut(tmp_path: Path) -> None:
    loaded = write_dataset(open_store(str(tmp_path)))
    loaded.manifest.classes = [f"class{number}" for number in range(1000)]
    text = " ".join(shown(tables.manifest_view(loaded)).split())
    assert "1,000 classes: class0," in text
    assert "class9 and 990 more." in text


def test_a_difference_fits_80_columns_and_lists_are_cut(tmp_path: Path) -> None:
    root = open_store(str(tmp_path))
    before = write_dataset(root, seed=1).manifest
    after = write_dataset(root, seed=1, rows=6, codebook=b"another").manifest
    after.classes = ["zero", "one", "[blue]two", *(f"class{number}" for number in range(20))]
    text = shown(tables.diff_view(diff_manifests(before, after), after.classes), width=80)
    assert "…" not in text
    assert "[blue]two" in text
    assert "and 11 more" in text
    for asset in before.assets + after.assets:
        assert asset.xxh3[:16] in text
    tail = " ".join(text.split())
    assert "train: images of 1 labels: 2 ([blue]two) +3." in tail
    assert "train: shares of the codes differ by 3.47% (total variation)" in tail


def test_rows_that_moved_are_told(tmp_path: Path) -> None:
    before = write_dataset(open_store(str(tmp_path))).manifest
    after = deepcopy(before)
    after.splits[0].shards.reverse()
    text = shown(tables.diff_view(diff_manifests(before, after), after.classes))
    assert "train: 2 shared shards have other row numbers than before." in text
    same = shown(tables.diff_view(diff_manifests(before, before), after.classes))
    assert same == "Versions 1 and 1 hold the same rows in the same order.\n"


def test_orphans_are_listed_with_sizes() -> None:
    text = shown(tables.orphan_table([Entry("shards/a[b].parquet", 2_500, 0.0)]))
    assert "shards/a[b].parquet" in text
    assert "2.5 kB" in text


def test_streams_show_where_they_stand_and_what_is_wrong() -> None:
    running = wire.StreamInfo(
        name="mtm", state="running", step=5, step_target=20, eta_seconds=7300, retries=2
    )
    silent = wire.StreamInfo(name="hangs", state="stalled", silent_seconds=45)
    bad = wire.StreamInfo(name="bad", state="unreadable", reason="rank-0.json: \x1b[2Jnot JSON")
    text = shown(tables.stream_table([running, silent, bad]), width=160)
    assert "2 h" in text
    assert "2 retries" in text
    assert "silent 45 s" in text
    assert "bad: rank-0.json: \N{REPLACEMENT CHARACTER}[2Jnot JSON" in text


@pytest.mark.parametrize("width", [1, 40, 80, 99])
def test_no_figure_is_cut_however_narrow_the_terminal(width: int) -> None:
    one = wire.StreamInfo(
        name="a-run-of-a-long-name",
        state="running",
        step=123_456,
        step_target=375_000,
        eta_seconds=259_200,
        rows_per_second=512_345,
        storage_share=0.123,
        cache_hit_rate=0.987,
        retries=12,
    )
    file = io.StringIO()
    show(Console(file=file, width=width), tables.stream_table([one]))
    (line,) = (line for line in file.getvalue().splitlines() if "123,456" in line)
    for words in ("375,000", "3 d", "512,345", "12.3%", "98.7%"):
        assert words in line
    assert "…" not in file.getvalue()
