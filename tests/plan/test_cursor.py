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
        ("subset_rows", 50, "subset_rows (cursor 0, stream 50)"),
        ("subset_seed", 1, "subset_seed (cursor 0, stream 1)"),
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
        (b"{}", "found format None, this program reads 1 to 3"),
        (b'{"format": true}', "found format True"),
        (b'{"format": 0}', "found format 0"),
        (b'{"format": 4, "new": 1}', "found cursor format 4, .* reads 1 to 3.*upgrade seitpp"),
        (b" " * 5000, "found 5000 bytes where a cursor has at most 4096"),
        (edited(lambda raw: raw.update(step=-1)), "field step is not valid"),
        (edited(lambda raw: raw.update(step="x")), "field step is not valid"),
        (edited(lambda raw: raw.update(extra=1)), "field extra is not valid"),
        (edited(lambda raw: raw["order"].update(lanes=2**40)), "field order.lanes is not valid"),  # type: ignore[attr-defined]
        (edited(lambda raw: raw.update(source=raw["sources"])), "field source is not valid"),
        (edited(lambda raw: raw.update(weights=[1.0, 2.0])), "field weights .*1 sources"),
        (edited(lambda raw: raw.update(weights=[-1.0], sources=raw["sources"] * 2)), "weights"),  # type: ignore[operator]
        (edited(lambda raw: raw.pop("sources")), "lacks its sources or its order"),
        (edited(lambda raw: raw.pop("order")), "lacks its sources or its order"),
        (b'{"format": 1, "order": {}}', "lacks its sources or its order"),
        (b'{"format": 1, "source": 5, "order": {}}', "field sources.0 is not valid"),
        (b'{"format": 1, "sources": []}', "field sources .*format 1 has no such field"),
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


# -- mixtures -----------------------------------------------------------------------------------


def several(count: int) -> list[wire.Source]:
    return [source(dataset=f"set-{number}", version=number + 1) for number in range(count)]


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(2, 12), step=st.integers(0, 2**63), scale=st.floats(1e-3, 1e3), data=st.data()
)
def test_a_position_in_a_mixture_survives_its_bytes(
    count: int, step: int, scale: float, data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
    made = cursor.make_cursor(several(count), ORDER, step, weights=weights)
    loaded = cursor.load(cursor.dump(made))
    assert loaded == made
    assert cursor.check(loaded, several(count), ORDER, weights=weights) == []
    scaled = [weight * scale for weight in weights]  # the same mixture in other words
    assert cursor.check(loaded, several(count), ORDER, weights=scaled) == []


def test_another_mixture_is_refused_with_both() -> None:
    made = cursor.make_cursor(several(2), ORDER, 3, weights=[1, 2])
    for sources, weights, shown in (
        (several(2), [2, 1], "weights (cursor [1.0, 2.0], stream [2.0, 1.0])"),
        (several(2), [], 'weights (cursor [1.0, 2.0], stream "the sources\' rows")'),
        (
            several(2)[::-1],
            [1, 2],
            "sources (cursor 'set-0/train, set-1/train', stream 'set-1/train, set-0/train')",
        ),
        (several(1), [], "sources (cursor 'set-0/train, set-1/train', stream 'set-0/train')"),
        (
            [several(2)[0], source(dataset="set-1", version=9)],
            [1, 2],
            "version of set-1/train (cursor 2, stream 9)",
        ),
    ):
        with pytest.raises(CursorMismatchError) as caught:
            cursor.check(made, sources, ORDER, weights=weights)
        assert shown in str(caught.value)


def test_a_single_source_has_no_weights() -> None:
    made = cursor.make_cursor([source()], ORDER, 3, weights=[5])
    assert made == cursor.make_cursor(source(), ORDER, 3)
    assert cursor.check(made, source(), ORDER, weights=[7]) == []


def test_more_sources_than_a_cursor_holds_are_refused_at_any_step() -> None:
    held = max(count for count in range(1, 60) if fits(several(count)))
    assert held >= 20
    with pytest.raises(InvalidInputError, match=rf"cursor of {held + 1} sources .*fewer sources"):
        cursor.dump(cursor.make_cursor(several(held + 1), ORDER, 0))
    for step in (0, 10**19):
        assert len(cursor.dump(cursor.make_cursor(several(held), ORDER, step))) <= 4096


def fits(sources: list[wire.Source]) -> bool:
    try:
        cursor.dump(cursor.make_cursor(sources, ORDER, 0))
    except InvalidInputError:
        return False
    return True


@pytest.mark.parametrize(
    ("count", "weights"), [(0, []), (2, [1.0]), (2, [1.0, 0.0]), (2, [1.0, float("inf")])]
)
def test_weights_that_cannot_be_are_refused(count: int, weights: list[float]) -> None:
    with pytest.raises(InvalidInputError, match="weights"):
        cursor.make_cursor(several(count), ORDER, 0, weights=weights)


# -- older and newer data -----------------------------------------------------------------------


def test_a_position_of_format_1_is_one_of_a_single_source() -> None:
    written = (
        b'{"format":1,"source":{"root":"s3://bucket/data","dataset":"imagenet","version":3,'
        b'"split":"train","manifest_digest":"0123456789abcdef0123456789abcdef"},"order":'
        b'{"seed":18446744073709551615,"global_batch_rows":24,"block_rows":4,"lanes":2,'
        b'"window_shards":3},"step":7}'
    )
    assert cursor.load(written) == cursor.make_cursor(source(), ORDER, 7)


def test_another_version_must_be_allowed_and_is_recorded() -> None:
    made = cursor.make_cursor(several(2), ORDER, 1200)
    newer = [several(2)[0], source(dataset="set-1", version=9, manifest_digest="ff")]
    with pytest.raises(CursorMismatchError, match=r"pass --resume\.allow-dataset-version"):
        cursor.check(made, newer, ORDER)
    (record,) = cursor.check(made, newer, ORDER, allow={cursor.DATASET_VERSION})
    for part in ("from step 1200 on", "set-1/train", "version 9 (manifest ff)", "version 2"):
        assert part in record
    assert cursor.check(made, several(2), ORDER, allow={cursor.DATASET_VERSION}) == []


@pytest.mark.parametrize(
    ("change", "order"),
    [
        ({"dataset": "other"}, ORDER),
        ({"split": "validation"}, ORDER),
        ({}, replace(ORDER, window_shards=9)),
    ],
)
def test_only_the_version_can_be_allowed(change: dict[str, object], order: OrderSpec) -> None:
    made = cursor.make_cursor(source(), ORDER, 7)
    with pytest.raises(CursorMismatchError) as caught:
        cursor.check(
            made, source(version=4, **change), order, allow=frozenset({cursor.DATASET_VERSION})
        )
    assert "version" not in str(caught.value)
    with pytest.raises(CursorMismatchError) as caught:
        cursor.check(made, source(version=4, **change), order)
    assert "version (cursor 3, stream 4)" in str(caught.value)
    assert "--resume" not in str(caught.value)
    with pytest.raises(InvalidInputError, match="seed"):
        cursor.check(made, source(), ORDER, allow={"seed"})


def test_sources_that_are_no_datasets_have_no_other_version() -> None:
    """Pictures of a folder stand for themselves: there is no version to go on with."""
    made = cursor.make_cursor(wire.Source(split="train", manifest_digest="aa"), ORDER, 7)
    with pytest.raises(CursorMismatchError) as caught:
        cursor.check(made, wire.Source(split="train", manifest_digest="bb"), ORDER)
    assert "--resume" not in str(caught.value)


def test_a_position_of_format_2_is_one_in_whole_splits() -> None:
    written = (
        b'{"format":2,"order":{"seed":18446744073709551615,"global_batch_rows":24,"block_rows":4,'
        b'"lanes":2,"window_shards":3},"step":7,"sources":[{"root":"s3://bucket/data","dataset":'
        b'"imagenet","version":3,"split":"train","manifest_digest":'
        b'"0123456789abcdef0123456789abcdef"}],"weights":[]}'
    )
    assert cursor.load(written) == cursor.make_cursor(source(), ORDER, 7)


def test_another_subset_of_a_mixture_is_refused() -> None:
    part = [replace(several(2)[0], subset_rows=40, subset_seed=1), several(2)[1]]
    made = cursor.make_cursor(part, ORDER, 3)
    assert cursor.check(made, part, ORDER) == []
    with pytest.raises(CursorMismatchError, match=r"set-0/train \(40 rows, seed 1\), set-1/train"):
        cursor.check(made, several(2), ORDER)
