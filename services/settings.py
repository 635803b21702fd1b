"""Settings of a machine, from environment variables. Leaf module: imports only `errors`.

What belongs to a run stands in its command line; what belongs to the machine that runs it (where
the cache may lie, how large it may grow) stands here.

| variable | meaning | default |
|---|---|---|
| `SEIT_CACHE_DIR` | folder of the node's shard cache | `$XDG_CACHE_HOME/seit` or `~/.cache/seit` |
| `SEIT_CACHE_BYTES` | most bytes that the cache may hold | `20G` |
| `SEIT_STATS_FRESH_SECONDS` | longest time the stats service answers from one listing | `4.5` |
| `SEIT_STATS_SHARDS` | shards whose descriptions the stats service keeps in memory | `200K` |
| `SEIT_STATS_RUNS` | folders of runs whose streams it shows, separated by commas | none |
| `SEIT_STATS_STREAM_BYTES` | bytes of what their ranks wrote that it keeps in memory | `64M` |
| `SEIT_STATS_ANSWER_BYTES` | bytes of finished answers that it keeps in memory | `64M` |
| `SEIT_STATS_RATE` | requests a second that one client may make | `1000` |
| `SEIT_STATS_SECONDS` | longest time that one answer may take | `30` |
| `SEIT_STATS_TOKENS` | file of tokens' hashes, by `seit token`; without it all may read | none |
| `SEIT_STATS_RAY` | the Ray dashboard, `http://HOST:8265`, for jobs and actors | none |
| `SEIT_STATS_TOKENADAPT` | TokenAdapt weights (path or URL) for the augmentation gallery | none |
| `RAY_AUTH_TOKEN` | token of that cluster, where it wants one | none |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.errors import InvalidInputError

_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_LIMIT = 2.0**63


@dataclass(frozen=True)
class Settings:
    """What `load_settings` reads; the table above says what each field means."""

    cache_dir: Path
    cache_bytes: int
    stats_fresh_seconds: float
    stats_shards: int
    stats_runs: tuple[str, ...]
    stats_stream_bytes: int
    stats_answer_bytes: int
    stats_rate: float
    stats_seconds: float
    stats_tokens: Path | None
    stats_ray: str
    stats_tokenadapt: str
    ray_token: str = field(repr=False)  # a secret: it must not reach a log


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from `environ`, by default the process's own environment.

    Numbers may end in K, M, G or T (powers of 1000), sizes in KB, MB, GB or TB as well.

    Raises: InvalidInputError naming the variable, its value and what it may be.
    """
    env = os.environ if environ is None else environ
    return Settings(
        cache_dir=_cache_dir(env),
        cache_bytes=int(_number(env, "SEIT_CACHE_BYTES", "20G", least=1)),
        stats_fresh_seconds=_number(env, "SEIT_STATS_FRESH_SECONDS", "4.5", least=0),
        stats_shards=int(_number(env, "SEIT_STATS_SHARDS", "200K", least=1)),
        stats_runs=tuple(
            url.strip() for url in env.get("SEIT_STATS_RUNS", "").split(",") if url.strip()
        ),
        stats_stream_bytes=int(_number(env, "SEIT_STATS_STREAM_BYTES", "64M", least=1)),
        stats_answer_bytes=int(_number(env, "SEIT_STATS_ANSWER_BYTES", "64M", least=0)),
        stats_rate=_number(env, "SEIT_STATS_RATE", "1000", least=1),
        stats_seconds=_number(env, "SEIT_STATS_SECONDS", "30", least=1),
        stats_tokens=Path(text).expanduser() if (text := env.get("SEIT_STATS_TOKENS")) else None,
        stats_ray=env.get("SEIT_STATS_RAY", ""),
        stats_tokenadapt=env.get("SEIT_STATS_TOKENADAPT", ""),
        ray_token=env.get("RAY_AUTH_TOKEN", ""),
    )


def quantity(text: str) -> float:
    """The number that a text such as "20G" or "0.5 GB" says, powers of 1000; NaN if it is none."""
    digits = text.strip().upper().removesuffix("B")
    unit = _UNITS.get(digits[-1:], 1)
    try:
        return float(digits[:-1] if unit > 1 else digits) * unit
    except ValueError:
        return float("nan")


def _number(env: Mapping[str, str], name: str, default: str, least: int) -> float:
    text = env.get(name) or default
    value = quantity(text)
    if not least <= value < _LIMIT:
        raise InvalidInputError(
            f"{name} is {text!r}, expected a number from {least} on, such as {default!r} (K, M, G"
            " and T stand for powers of 1000): correct it, or unset it for that default"
        )
    return value


def _cache_dir(env: Mapping[str, str]) -> Path:
    if chosen := env.get("SEIT_CACHE_DIR"):
        return Path(chosen).expanduser().absolute()
    base = env.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "seit"
