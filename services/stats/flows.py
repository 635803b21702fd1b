"""What a run's ranks say of their streams, read with distrust and summed: pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime

import pydantic
import pydantic_core

from services.errors import FormatError
from services.wire.seit import v1 as wire

RUNNING, STALLED, UNREADABLE = "running", "stalled", "unreadable"
STATES = (RUNNING, "finished", "stopped", "failed", STALLED, UNREADABLE)
"""States of a stream; those that a rank itself may write are the first four."""

STALLED_SECONDS = 30.0
"""A rank that says it runs, but has said nothing for longer, is stalled."""

_WRITTEN = STATES[:4]
_GRAVEST = ("failed", STALLED, RUNNING, "stopped", "finished")
_MAX_SECONDS = 1e10  # three centuries: beyond it a figure is damage
_MAX_TEXT = 500  # characters of a name
_MOST = 2**64 - 1  # of a wire field
_ADAPTER = pydantic.TypeAdapter(wire.Flow)
_NUMBERS = (
    "seconds",
    "stall_seconds",
    "stall_storage_seconds",
    "stall_augmentation_seconds",
    "consumer_seconds",
    "first_batch_seconds",
    "rows_per_second",
)


@dataclass(frozen=True)
class Word:
    """The last word of one rank. updated: when it was said, Unix seconds."""

    flow: wire.Flow
    updated: float


def parse_word(data: bytes, rank: int) -> Word:
    """The word in a file of rank `rank`: wire.Flow as protobuf's JSON, fields of newer versions
    left out.

    Raises: FormatError that says what is wrong, and never quotes the file: it may be anyone's.
    """
    try:
        raw = pydantic_core.from_json(data)
    except ValueError as error:
        raise FormatError("this is not whole JSON") from error
    if not isinstance(raw, dict):
        raise FormatError("this is JSON, but not an object")
    try:
        flow = _ADAPTER.validate_python(
            {name: raw[key] for name, keys in _KEYS.items() for key in keys if key in raw}
        )
    except pydantic.ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise FormatError(f"{place} is not what it should be ({first['type']})") from error
    if flow.rank != rank:
        raise FormatError(f"it is of rank {flow.rank}, not of rank {rank} as its name says")
    if flow.state not in _WRITTEN:
        raise FormatError(f"its state is none of {', '.join(_WRITTEN)}")
    if rank >= flow.workers:
        raise FormatError(f"rank {rank} is not one of its {flow.workers} workers")
    if max(len(text) for text in (flow.stream, *flow.quarantined)) > _MAX_TEXT:
        raise FormatError(f"a name in it has more than {_MAX_TEXT} characters")
    for name in _NUMBERS:
        value, most = getattr(flow, name), math.inf if name == "rows_per_second" else _MAX_SECONDS
        if not (0 <= value <= most and math.isfinite(value)):
            raise FormatError(f"{name} is not a number from 0 on that a stream can have")
    return Word(flow, _unix(flow.updated))


def _keys(name: str) -> tuple[str, str]:
    """A field's names in protobuf's JSON: as in the schema, or in camel case."""
    first, *rest = name.split("_")
    return name, first + "".join(part.capitalize() for part in rest)


_KEYS: Mapping[str, tuple[str, str]] = {
    field.name: _keys(field.name) for field in fields(wire.Flow) if not field.name.startswith("_")
}


def _unix(text: str) -> float:
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise FormatError("updated is not a time") from error
    if when.tzinfo is None:
        raise FormatError("updated is a time without its zone")
    return when.timestamp()


def parse_identity(data: bytes) -> tuple[str, str]:
    """(kind, recipe) of a run.json; empty where it does not say.

    Raises: FormatError.
    """
    try:
        raw = pydantic_core.from_json(data)
    except ValueError as error:
        raise FormatError("this is not whole JSON") from error
    if not isinstance(raw, dict):
        raise FormatError("this is JSON, but not an object")
    augment = raw.get("augment")
    recipe = augment.get("recipe") if isinstance(augment, dict) else None
    return _name(raw.get("kind")), _name(recipe)


def _name(value: object) -> str:
    return value if isinstance(value, str) and len(value) <= _MAX_TEXT else ""


def current(words: Sequence[Word]) -> list[Word]:
    """Words of the ranks that there are now, by rank: a run that goes on with fewer workers leaves
    files of the others behind, and its newest word says how many there are."""
    newest = max(words, key=lambda word: word.updated, default=None)
    workers = newest.flow.workers if newest else 0
    return sorted(
        (word for word in words if word.flow.rank < workers), key=lambda word: word.flow.rank
    )


def summarize_words(name: str, words: Sequence[Word], now: float) -> wire.StreamInfo:
    """One stream from the words of its current ranks (one at least), `now` in Unix seconds."""
    flows = [word.flow for word in words]
    ranks = [_rank(word, now) for word in words]
    newest = max(words, key=lambda word: word.updated)
    states = {rank.state for rank in ranks}
    state = next(one for one in _GRAVEST if one in states)
    alive = state in (RUNNING, STALLED)
    flowing = sum(max(0.0, flow.seconds - flow.first_batch_seconds) for flow in flows)
    fetched, cached = _sum(flows, "bytes_fetched"), _sum(flows, "bytes_cached")
    return wire.StreamInfo(
        name=name,
        stream=newest.flow.stream,
        state=state,
        started=rfc3339(min(word.updated - word.flow.seconds for word in words)),
        updated=rfc3339(newest.updated, "milliseconds"),
        silent_seconds=max(rank.silent_seconds for rank in ranks),
        workers=newest.flow.workers,
        step=min(flow.step for flow in flows),
        step_target=max(flow.step_target for flow in flows),
        eta_seconds=_eta(flows) if alive else None,
        rows=_sum(flows, "rows"),
        rows_per_second=min(sum(flow.rows_per_second for flow in flows), 1e300),
        storage_share=_share([flow.stall_storage_seconds for flow in flows], flowing),
        augmentation_share=_share([flow.stall_augmentation_seconds for flow in flows], flowing),
        consumer_share=_share([flow.consumer_seconds for flow in flows], flowing),
        bytes_fetched=fetched,
        bytes_cached=cached,
        cache_hit_rate=cached / (fetched + cached) if fetched + cached else 0.0,
        retries=_sum(flows, "retries"),
        refetches=_sum(flows, "refetches"),
        actor_restarts=_sum(flows, "actor_restarts"),
        quarantined=len({shard for flow in flows for shard in flow.quarantined}),
        ranks=ranks,
    )


def without_ranks(info: wire.StreamInfo) -> wire.StreamInfo:
    """The same stream as a line of a list."""
    return replace(info, ranks=[])


def rfc3339(seconds: float, precision: str = "seconds") -> str:
    """A Unix time in words; what lies outside of the calendar's years becomes their edge."""
    least, most = 0.0, datetime(9999, 12, 31, tzinfo=UTC).timestamp()
    when = datetime.fromtimestamp(min(max(seconds, least), most), UTC)
    return when.isoformat(timespec=precision)


def _rank(word: Word, now: float) -> wire.StreamRank:
    if word.flow.state != RUNNING:
        return wire.StreamRank(flow=word.flow, state=word.flow.state)
    silent = round(max(0.0, now - word.updated), 1)
    state = STALLED if silent > STALLED_SECONDS else RUNNING
    return wire.StreamRank(flow=word.flow, state=state, silent_seconds=silent)


def _eta(flows: Sequence[wire.Flow]) -> float | None:
    """Seconds that are left by the slowest rank's own pace; None before it has one.

    The first batch is start-up, so the pace is that of the steps after it.
    """
    left = []
    for flow in flows:
        if flow.steps < 2:
            return None
        pace = max(0.0, flow.seconds - flow.first_batch_seconds) / (flow.steps - 1)
        left.append(max(0, flow.step_target - flow.step) * pace)
    return max(left)


def _sum(flows: Sequence[wire.Flow], name: str) -> int:
    return min(sum(int(getattr(flow, name)) for flow in flows), _MOST)


def _share(parts: Sequence[float], whole: float) -> float:
    return min(1.0, sum(parts) / whole) if whole else 0.0
