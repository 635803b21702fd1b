"""Settings of a machine, from environment variables. Leaf module: imports only `errors`.

What belongs to a run stands in its command line; what belongs to the machine that runs it (where
the cache may lie, how large it may grow) stands here.
docs/operations.md lists all of them, with meaning and default; a test holds it to this module.
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
    """What `load_settings` reads; docs/operations.md says what each field means."""

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
