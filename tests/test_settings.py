"""Settings of a machine, from variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.errors import InvalidInputError
from services.settings import load_settings


def test_every_variable_has_a_default() -> None:
    found = load_settings({"XDG_CACHE_HOME": "/cache"})
    assert found.cache_dir == Path("/cache/seit")
    assert (found.cache_bytes, found.stats_shards) == (20_000_000_000, 200_000)
    assert (found.stats_runs, found.stats_stream_bytes) == ((), 64_000_000)
    assert load_settings({}).cache_dir == Path.home() / ".cache/seit"


def test_variables_are_read() -> None:
    found = load_settings(
        {
            "SEIT_CACHE_DIR": "~/x",
            "SEIT_CACHE_BYTES": "1.5 GB",
            "SEIT_STATS_FRESH_SECONDS": "0",
            "SEIT_STATS_SHARDS": "5k",
            "SEIT_STATS_RUNS": "s3://bucket/runs, /data/runs,",
            "SEIT_STATS_STREAM_BYTES": "1M",
        }
    )
    assert found.cache_dir == Path.home() / "x"
    assert (found.cache_bytes, found.stats_fresh_seconds) == (1_500_000_000, 0)
    assert found.stats_shards == 5000
    assert found.stats_runs == ("s3://bucket/runs", "/data/runs")
    assert found.stats_stream_bytes == 1_000_000


def test_the_process_s_own_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEIT_CACHE_BYTES", "7")
    assert load_settings().cache_bytes == 7


@pytest.mark.parametrize("text", ["x", "-1", "0", "nan", "inf", "1Q", "G", "B", "1e30", "1 2"])
def test_a_wrong_size_is_named(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"SEIT_CACHE_BYTES is .*such as '20G'"):
        load_settings({"SEIT_CACHE_BYTES": text})


def test_a_relative_cache_folder_is_made_absolute() -> None:
    assert load_settings({"SEIT_CACHE_DIR": "here"}).cache_dir == Path.cwd() / "here"
