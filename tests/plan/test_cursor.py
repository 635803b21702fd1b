from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import CursorMismatchError, FormatError, InvalidInputError
from services.plan import cursor
from services.plan.epoch import OrderSpec
from services.wire.seit import v1 as wire

ORDER = OrderSpec(seed=2**64 - 1, global_batch_rows=24, block_rows=4, lanes=2, window_shards=3)
DIGEST = "0123456789abcdef" * 2


def source(**change: object) -> wire.Source:
    fields: dict[str, object] = {
        "root": "s3://bucket/data",
        "dataset": "imagenet",
        "version": 3,
        "split": "train",
        "manifest_digest": DIGEST,
    }
    return wire.Source(**{**fields, **change})  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**63),
    block=st.integers(1, 99),
    turns=st.integers(1, 9),
    lanes=st.integers(1, 9),
    root=st.text(max_size=60),
)
def test_a_cursor_survives_its_bytes(
    seed: int, step: int, block: int, turns: int, lanes: int, root: str
) -> None:
    order = OrderSpec(seed, block * turns * lanes, block, lanes, 5)
    made = cursor.make_cursor(source(root=root), order, step)
    data = cursor.dump(made)
    assert len(data) <= cursor.MAX_CURSOR_BYTES
    loaded = cursor.load(data)
    assert loaded == made
    assert loaded.step == step
    assert cursor.order_from_wire(loaded.order) == order
    cursor.check(loaded, source(root=root), order)


def test_data_that_moved_are_the_same_data() -> None:
    made = cursor.make_cursor(source(root="/mnt/data"), ORDER, 1)
    cursor.check(made, source(root="s3://elsewhere"), ORDER)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("dataset", "other", "dataset (cursor 'imagenet', stream 'other')"),
        ("version", 4, "version (cursor 3, stream 4)"),
        ("split", "validation", "split (cursor 'train', stream 'validation')"),
        ("manifest_digest", "ff", f"manifest_digest (cursor '{DIGEST}', stream 'ff')"),
        ("seed", 1, "seed (cursor 18446744073709551615, stream 1)"),
        ("global_batch_rows", 48, "global_batch_rows (cursor 24, stream 48)"),
        ("block_rows", 2, "block_rows (cursor 4, stream 2)"),
        ("lanes", 3, "lanes (cursor 2, stream 3)"),
        ("window_shards", 9, "window_shards (cursor 3, stream 9)"),
    ],
)
def test_each_difference_is_refused_with_both_values(name: str, value: object, shown: str) -> None:
    made = cursor.make_cursor(source(), ORDER, 7)
    in_order = hasattr(ORDER, name)
    order = replace(ORDER, **{name: value}) if in_order else ORDER  # type: ignore[arg-type]
    mine = source() if in_order else source(**{name: value})
    with pytest.raises(CursorMismatchError) as caught:
        cursor.check(made, mine, order)
    assert shown in str(caught.value)
    assert str(caught.value).count("(cursor ") == 1
    assert "start without it" in str(caught.value)


def test_all_differences_are_named_at_once() -> None:
    made = cursor.make_cursor(source(), ORDER, 7)
    with pytest.raises(CursorMismatchError, match=r"version .*, seed "):
        cursor.check(made, source(version=9), replace(ORDER, seed=0))


def edited(change: Callable[[dict[str, object]], object]) -> bytes:
    raw = json.loads(cursor.dump(cursor.make_cursor(source(), ORDER, 7)))
    change(raw)
    return json.dumps(raw).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 4000, "not JSON"),
        (b"[]", "found format None"),
        (b"{}", "found format None, this program reads 1"),
        (b'{"format": true}', "found format True"),
        (b'{"format": 0}', "found format 0"),
        (b'{"format": 2, "new": 1}', "found cursor format 2, this program reads 1.*upgrade seitpp"),
        (b" " * 5000, "found 5000 bytes where a cursor has at most 4096"),
        (edited(lambda raw: raw.update(step=-1)), "field step is not valid"),
        (edited(lambda raw: raw.update(step="x")), "field step is not valid"),
        (edited(lambda raw: raw.update(extra=1)), "field extra is not valid"),
        (edited(lambda raw: raw["order"].update(lanes=2**40)), "field order.lanes is not valid"),  # type: ignore[attr-defined]
        (edited(lambda raw: raw.pop("source")), "lacks its source or its order"),
        (edited(lambda raw: raw.pop("order")), "lacks its source or its order"),
    ],
)
def test_what_is_not_a_cursor_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        cursor.load(data)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 400))
def test_damage_is_refused_or_harmless(noise: bytes, begin: int, end: int) -> None:
    data = cursor.dump(cursor.make_cursor(source(), ORDER, 7))
    damaged = data[:begin] + noise + data[end:]
    try:
        loaded = cursor.load(damaged)
    except FormatError:
        return
    assert loaded.format == cursor.CURSOR_FORMAT


def test_impossible_positions_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="step=-1 is negative"):
        cursor.make_cursor(source(), ORDER, -1)
    with pytest.raises(InvalidInputError, match="shorten the URL"):
        cursor.dump(cursor.make_cursor(source(root="x" * 5000), ORDER, 0))
    with pytest.raises(InvalidInputError, match="lanes=0"):
        cursor.order_from_wire(wire.Order(seed=1, global_batch_rows=4, block_rows=2))
