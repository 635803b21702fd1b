"""A stream's position as bytes, and the check that it belongs to the stream at hand."""

from __future__ import annotations

import json

from pydantic import TypeAdapter, ValidationError

from services.errors import CursorMismatchError, FormatError, InvalidInputError
from services.plan.epoch import OrderSpec
from services.wire.seit import v1 as wire

CURSOR_FORMAT = 1
MAX_CURSOR_BYTES = 4096

_ORDER_FIELDS = ("seed", "global_batch_rows", "block_rows", "lanes", "window_shards")
# Not the root: data that moved to another place are the same data, as their digest says.
_SOURCE_FIELDS = ("dataset", "version", "split", "manifest_digest")
_ADAPTER: TypeAdapter[wire.Cursor] = TypeAdapter(wire.Cursor)


def order_to_wire(order: OrderSpec) -> wire.Order:
    """The message of an order."""
    return wire.Order(**{name: getattr(order, name) for name in _ORDER_FIELDS})


def order_from_wire(order: wire.Order) -> OrderSpec:
    """The order of a message. Raises InvalidInputError if no stream can have that order."""
    return OrderSpec(**{name: getattr(order, name) for name in _ORDER_FIELDS})


def make_cursor(source: wire.Source, order: OrderSpec, step: int) -> wire.Cursor:
    """The position after `step` steps of a run over all its epochs; step >= 0."""
    if step < 0:
        raise InvalidInputError(
            f"step={step} is negative: a run begins at step 0; pass the steps already consumed"
        )
    return wire.Cursor(format=CURSOR_FORMAT, source=source, order=order_to_wire(order), step=step)


def dump(cursor: wire.Cursor) -> bytes:
    """JSON of a cursor, at most MAX_CURSOR_BYTES; raises InvalidInputError if it would be more."""
    data = _ADAPTER.dump_json(cursor)
    if len(data) > MAX_CURSOR_BYTES:
        raise InvalidInputError(
            f"the cursor takes {len(data)} bytes, at most {MAX_CURSOR_BYTES} are valid: a reader "
            "would refuse it; shorten the URL of the datasets' root"
        )
    return data


def load(data: bytes) -> wire.Cursor:
    """The inverse of `dump`. Raises FormatError for anything that `dump` did not write."""
    if len(data) > MAX_CURSOR_BYTES:
        raise FormatError(
            f"found {len(data)} bytes where a cursor has at most {MAX_CURSOR_BYTES}: this is not a "
            "stream position; pass the cursor of a checkpoint"
        )
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"a cursor is a JSON object, this is not JSON ({error}): the position is lost; "
            "take an earlier checkpoint"
        ) from error
    found = raw.get("format") if isinstance(raw, dict) else None
    if type(found) is not int or found < 1:
        raise FormatError(
            f"found format {found!r}, this program reads {CURSOR_FORMAT}: this is not a stream "
            "position; pass the cursor of a checkpoint"
        )
    if found > CURSOR_FORMAT:
        raise FormatError(
            f"found cursor format {found}, this program reads {CURSOR_FORMAT}: the checkpoint was "
            "written by a newer version; upgrade seitpp"
        )
    try:
        cursor = _ADAPTER.validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FormatError(
            f"the cursor's field {where or '(all)'} is not valid ({first['msg']}): the position "
            "is lost; take an earlier checkpoint"
        ) from error
    if cursor.source is None or cursor.order is None:
        raise FormatError(
            "the cursor lacks its source or its order: the position is lost; "
            "take an earlier checkpoint"
        )
    return cursor


def check(cursor: wire.Cursor, source: wire.Source, order: OrderSpec) -> None:
    """Raise CursorMismatchError unless the cursor is a position in this stream.

    The message names each field that differs, with the value of the cursor and of the stream.
    """
    pairs = [
        (name, getattr(cursor.source, name, None), getattr(source, name)) for name in _SOURCE_FIELDS
    ]
    pairs += [
        (name, getattr(cursor.order, name, None), getattr(order, name)) for name in _ORDER_FIELDS
    ]
    differing = [
        f"{name} (cursor {theirs!r}, stream {ours!r})"
        for name, theirs, ours in pairs
        if theirs != ours
    ]
    if differing:
        raise CursorMismatchError(
            f"the position is of another stream; differing: {', '.join(differing)}. Going on would "
            "repeat some rows and leave out others: use the cursor's values, or start without it"
        )
