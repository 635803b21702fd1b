"""What a rank's file says, read with distrust, and the sums over ranks."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import FormatError
from services.stats.flows import STATES, Word, current, parse_identity, parse_word, summarize_words
from services.stream.account import Account
from services.wire.seit import v1 as wire
from tests.small_runs import metered

ACCOUNT = Account(
    storage_seconds=1,
    augment_seconds=3,
    bytes_fetched=100,
    bytes_hit=300,
    retries=2,
    refetches=1,
    lost=("a.parquet",),
    restarted="node/7",
)


def as_file(flow: wire.Flow) -> bytes:
    return flow.to_json(indent=2).encode()


def word(rank: int = 0, world: int = 1, *, updated: float = 1000.0, **changes: object) -> Word:
    flow = metered(rank, world).snapshot()
    for name, value in changes.items():
        setattr(flow, name, value)
    return Word(flow, updated)


def test_a_written_flow_comes_back() -> None:
    flow = metered(2, 3, account=ACCOUNT).snapshot()
    assert parse_word(as_file(flow), 2).flow == flow
    newer = json.loads(as_file(flow)) | {"fieldOfNewerVersion": {"x": [1]}}
    assert parse_word(json.dumps(newer).encode(), 2).flow == flow
    assert parse_word(json.dumps(flow.to_dict()).encode(), 2).flow == flow


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": 1, "workers": 2}, "of rank 1, not of rank 0"),
        ({"state": "asleep"}, "state is none of running, finished, stopped, failed"),
        ({"workers": 0}, "not one of its 0 workers"),
        ({"rows": "-1"}, "rows is not what it should be"),
        ({"rows": str(2**64)}, "rows is not what it should be"),
        ({"rows": {"a": 1}}, "rows is not what it should be"),
        ({"seconds": "NaN"}, "seconds is not a number"),
        ({"seconds": -1}, "seconds is not a number"),
        ({"seconds": 1e300}, "seconds is not a number"),
        ({"rowsPerSecond": "Infinity"}, "rows_per_second is not a number"),
        ({"updated": "yesterday"}, "updated is not a time"),
        ({"updated": "2026-01-01T00:00:00"}, "without its zone"),
        ({"stream": "x" * 501}, "more than 500 characters"),
        ({"quarantined": ["x" * 501]}, "more than 500 characters"),
        ({"quarantined": "x"}, "quarantined is not what it should be"),
        ({"stream": None}, "stream is not what it should be"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, object], words: str) -> None:
    raw = json.loads(as_file(metered().snapshot())) | change
    with pytest.raises(FormatError, match=words):
        parse_word(json.dumps(raw).encode(), 0)


def test_a_foreign_file_is_not_quoted() -> None:
    for data in (b"root:secret", b'["secret"]', b'{"rows": "secret"}', b'{"state": "secret"}'):
        with pytest.raises(FormatError) as refused:
            parse_word(data, 0)
        assert "secret" not in str(refused.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
FIELDS = sorted(json.loads(as_file(metered(account=ACCOUNT).snapshot())))


@settings(deadline=None, max_examples=100)
@given(changes=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), now=st.floats(0, 1e10))
def test_any_file_is_a_word_or_a_format_error(changes: dict[str, object], now: float) -> None:
    raw = json.loads(as_file(metered(account=ACCOUNT).snapshot())) | changes
    try:
        found = parse_word(json.dumps(raw).encode(), 0)
    except FormatError:
        return
    info = summarize_words("run", [found], now)
    assert wire.StreamInfo.parse(bytes(info)) == info
    assert info.state in STATES


def test_ranks_add_up() -> None:
    words = [
        word(
            rank,
            2,
            updated=1000.0 + rank,
            seconds=11.0,
            first_batch_seconds=1.0,
            rows=40,
            rows_per_second=4.0,
            steps=5,
            step=5 - rank,
            stall_storage_seconds=1.0,
            stall_augmentation_seconds=2.0,
            consumer_seconds=5.0,
            bytes_fetched=100,
            bytes_cached=300,
            retries=rank,
            quarantined=["a", "b"][: rank + 1],
        )
        for rank in (0, 1)
    ]
    info = summarize_words("run", words, now=1002.5)
    assert (info.rows, info.rows_per_second, info.retries, info.quarantined) == (80, 8.0, 1, 2)
    assert (info.storage_share, info.augmentation_share, info.consumer_share) == (0.1, 0.2, 0.5)
    assert (info.bytes_fetched, info.bytes_cached, info.cache_hit_rate) == (200, 600, 0.75)
    assert (info.step, info.step_target, info.workers) == (4, 10, 2)
    assert info.eta_seconds == pytest.approx(6 * 10 / 4)  # rank 1: 6 steps left, 4 took 10 s
    assert (info.state, info.silent_seconds) == ("running", 2.5)
    assert info.started == "1970-01-01T00:16:29+00:00"
    assert info.updated == "1970-01-01T00:16:41.000+00:00"


@pytest.mark.parametrize(
    ("states", "together"),
    [
        (["running", "finished"], "running"),
        (["failed", "running"], "failed"),
        (["stopped", "finished"], "stopped"),
        (["finished", "finished"], "finished"),
    ],
)
def test_the_gravest_state_is_the_run_s(states: list[str], together: str) -> None:
    words = [word(rank, 2, state=state) for rank, state in enumerate(states)]
    assert summarize_words("run", words, now=1001).state == together


def test_silence_makes_a_running_stream_stalled_and_no_other() -> None:
    assert summarize_words("run", [word()], now=1030).state == "running"
    late = summarize_words("run", [word(0, 2, updated=1031), word(1, 2)], now=1031)
    assert (late.state, late.silent_seconds) == ("stalled", 31)
    assert [rank.state for rank in late.ranks] == ["running", "stalled"]
    done = summarize_words("run", [word(state="finished")], now=1e9)
    assert (done.state, done.silent_seconds, done.eta_seconds) == ("finished", 0, None)


def test_there_is_no_pace_before_the_second_step() -> None:
    first = Word(metered(steps=1).snapshot(), 1000.0)
    assert summarize_words("run", [first], now=1000).eta_seconds is None


def test_ranks_of_an_earlier_and_larger_group_do_not_count() -> None:
    left = [word(rank, 4, updated=900.0) for rank in range(4)]
    again = word(0, 2, updated=1000.0)
    assert [one.flow.rank for one in current([*left[1:], again])] == [0, 1]
    assert current([]) == []


def test_sums_stay_within_their_field() -> None:
    words = [word(rank, 2, rows=2**64 - 1, rows_per_second=1.7e308) for rank in (0, 1)]
    info = summarize_words("run", words, now=1000)
    assert info.rows == 2**64 - 1
    assert wire.StreamInfo.parse(bytes(info)) == info


@settings(deadline=None)
@given(JSON)
def test_any_run_json_is_read_or_refused(value: object) -> None:
    for found in (value, {"kind": value, "augment": value}, {"augment": {"recipe": value}}):
        try:
            kind, recipe = parse_identity(json.dumps(found).encode())
        except FormatError:
            continue
        assert isinstance(kind, str)
        assert isinstance(recipe, str)


def test_a_run_s_kind_and_recipe() -> None:
    assert parse_identity(b'{"kind": "MtmRun", "augment": {"recipe": "mtm"}}') == ("MtmRun", "mtm")
    assert parse_identity(b"{}") == ("", "")
    for data in (b"{", b"[]"):
        with pytest.raises(FormatError):
            parse_identity(data)
