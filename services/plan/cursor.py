"""A stream's position as bytes, and the check that it belongs to the stream at hand."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from services.errors import CursorMismatchError, FormatError, InvalidInputError
from services.plan.epoch import OrderSpec
from services.plan.mixture import shares_of
from services.wire.seit import v1 as wire

CURSOR_FORMAT = 3
MAX_CURSOR_BYTES = 4096

DATASET_VERSION = "dataset-version"
"""What `check` may be told to allow: another version of the same datasets."""

_ORDER_FIELDS = ("seed", "global_batch_rows", "block_rows", "lanes", "window_shards")
_SOURCE_FIELDS = ("dataset", "split", "subset_rows", "subset_seed")
# Not the root: data that moved to another place are the same data, as their digest says.
_VERSION_FIELDS = ("version", "manifest_digest")
_STEP_DIGITS = 20  # of the largest step
_ADAPTER: TypeAdapter[wire.Cursor] = TypeAdapter(wire.Cursor)


def order_to_wire(order: OrderSpec) -> wire.Order:
    """The message of an order."""
    return wire.Order(**{name: getattr(order, name) for name in _ORDER_FIELDS})


def order_from_wire(order: wire.Order) -> OrderSpec:
    """The order of a message. Raises InvalidInputError if no stream can have that order."""
    return OrderSpec(**{name: getattr(order, name) for name in _ORDER_FIELDS})


def make_cursor(
    sources: wire.Source | Sequence[wire.Source],
    order: OrderSpec,
    step: int,
    *,
    weights: Sequence[float] = (),
) -> wire.Cursor:
    """The position after `step` steps of a run over all its epochs; step >= 0.

    sources: one, or those of a mixture in its order. weights: as the mixture's plan was given
    them, none for the sources' rows; a single source has none.
    """
    if step < 0:
        raise InvalidInputError(
            f"step={step} is negative: a run begins at step 0; pass the steps already consumed"
        )
    listed = _listed(sources)
    return wire.Cursor(
        format=CURSOR_FORMAT,
        order=order_to_wire(order),
        step=step,
        sources=listed,
        weights=_weights_of(listed, weights),
    )


def _listed(sources: wire.Source | Sequence[wire.Source]) -> list[wire.Source]:
    return [sources] if isinstance(sources, wire.Source) else list(sources)


def _weights_of(sources: Sequence[wire.Source], weights: Sequence[float]) -> list[float]:
    """Weights as a cursor holds them. Raises InvalidInputError if no mixture can have them."""
    if not sources or len(weights) not in (0, len(sources)):
        raise InvalidInputError(
            f"a position in {len(sources)} sources got {len(weights)} weights: pass at least one "
            "source, and one weight for each or none at all"
        )
    if len(sources) == 1 or not len(weights):
        return []
    shares_of(weights)
    return [float(weight) for weight in weights]


def dump(cursor: wire.Cursor) -> bytes:
    """JSON of a cursor, at most MAX_CURSOR_BYTES; raises InvalidInputError if it would be more.

    Each step's digits are counted as those of the largest one: a stream of which one position can
    be written can write them all.
    """
    data = _ADAPTER.dump_json(cursor)
    size = len(data) - len(str(cursor.step)) + _STEP_DIGITS
    if size > MAX_CURSOR_BYTES:
        raise InvalidInputError(
            f"the cursor of {len(cursor.sources)} sources takes {size} bytes, at most "
            f"{MAX_CURSOR_BYTES} are valid: a reader would refuse it; shorten the URL of the "
            "datasets' root, or merge datasets into fewer sources"
        )
    return data


def load(data: bytes) -> wire.Cursor:
    """The inverse of `dump`; what formats 1 and 2 wrote comes back in today's.

    Raises FormatError for anything that `dump` never wrote.
    """
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
            f"found format {found!r}, this program reads 1 to {CURSOR_FORMAT}: this is not a "
            "stream position; pass the cursor of a checkpoint"
        )
    if found > CURSOR_FORMAT:
        raise FormatError(
            f"found cursor format {found}, this program reads 1 to {CURSOR_FORMAT}: the checkpoint "
            "was written by a newer version; upgrade seitpp"
        )
    if found == 1:
        data = _from_format_1(raw)
    elif found == 2:  # knew no subsets: the whole splits, as the fields' defaults say
        data = json.dumps({**raw, "format": CURSOR_FORMAT}).encode()
    try:
        cursor = _ADAPTER.validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FormatError(
            f"the cursor's field {where or '(all)'} is not valid ({first['msg']}): the position "
            "is lost; take an earlier checkpoint"
        ) from error
    if not cursor.sources or cursor.order is None:
        raise FormatError(
            "the cursor lacks its sources or its order: the position is lost; "
            "take an earlier checkpoint"
        )
    try:
        _weights_of(cursor.sources, cursor.weights)
    except InvalidInputError as error:
        raise FormatError(
            f"the cursor's field weights is not valid ({error}): the position is lost; "
            "take an earlier checkpoint"
        ) from error
    return cursor


def _from_format_1(raw: dict[str, Any]) -> bytes:
    """The same position in today's format: its one source becomes the first of a list."""
    for name in ("sources", "weights"):
        if name in raw:
            raise FormatError(
                f"the cursor's field {name} is not valid (format 1 has no such field): the "
                "position is lost; take an earlier checkpoint"
            )
    source = raw.pop("source", None)
    sources = [] if source is None else [source]
    return json.dumps({**raw, "format": CURSOR_FORMAT, "sources": sources}).encode()


def check(
    cursor: wire.Cursor,
    sources: wire.Source | Sequence[wire.Source],
    order: OrderSpec,
    *,
    weights: Sequence[float] = (),
    allow: Collection[str] = frozenset(),
) -> list[str]:
    """Raise CursorMismatchError unless the cursor is a position in this stream.

    The message names each field that differs, with the value of the cursor and of the stream.

    allow: may hold DATASET_VERSION. A source may then have another version and manifest than when
    the position was saved; its dataset and split, the other sources and the order may not. The
    stream goes on at the same step, but in the new version's order: in the epoch under way, rows
    may come again or be left out. Returns what was allowed, in words, for the run's record.
    """
    unknown = set(allow) - {DATASET_VERSION}
    if unknown:
        raise InvalidInputError(
            f"allow holds {sorted(unknown)}: only {DATASET_VERSION!r} can be allowed, every other "
            "difference would make a stream of something else; remove it"
        )
    ours = _listed(sources)
    other = _of_another_stream(cursor, ours, order, weights)
    changed = _changed_versions(cursor.sources, ours)
    allowed = DATASET_VERSION in allow
    if not other and (allowed or not changed):
        return _record(cursor, ours, sorted({number for number, *_ in changed}))
    differing = [
        f"{name}{_of(number, ours)} (cursor {theirs!r}, stream {mine!r})"
        for number, name, theirs, mine in changed
        if not allowed
    ]
    differing += other
    remedy = "use the cursor's values, or start without it"
    if not other and all(source.dataset for source in ours):
        remedy += (
            "; to go on from this step with another version of the same data, pass "
            "--resume.allow-dataset-version"
        )
    raise CursorMismatchError(
        f"the position is of another stream; differing: {', '.join(differing)}. Going on would "
        f"repeat some rows and leave out others: {remedy}"
    )


def _changed_versions(
    saved: list[wire.Source], ours: list[wire.Source]
) -> list[tuple[int, str, object, object]]:
    """(source, field, saved, now) of what another version may change."""
    if len(ours) > 1 and _names(saved) != _names(ours):
        return []  # other datasets: which versions they have says nothing
    return [
        (number, name, getattr(theirs, name), getattr(mine, name))
        for number, (theirs, mine) in enumerate(zip(saved, ours, strict=False))
        for name in _VERSION_FIELDS
        if getattr(theirs, name) != getattr(mine, name)
    ]


def _of_another_stream(
    cursor: wire.Cursor, ours: list[wire.Source], order: OrderSpec, weights: Sequence[float]
) -> list[str]:
    """What differs and can never be allowed: other datasets or splits, weights, or order."""
    pairs: list[tuple[str, object, object]] = []
    if len(ours) == len(cursor.sources) == 1:
        theirs, stands = cursor.sources[0], ours[0]
        pairs += [(n, getattr(theirs, n), getattr(stands, n)) for n in _SOURCE_FIELDS]
    else:
        pairs.append(("sources", _names(cursor.sources), _names(ours)))
    mine = _weights_of(ours, weights)
    if len(mine) != len(cursor.weights) or (
        len(mine) and shares_of(mine).tolist() != shares_of(cursor.weights).tolist()
    ):
        by_rows = "the sources' rows"
        pairs.append(("weights", cursor.weights or by_rows, mine or by_rows))
    pairs += [(n, getattr(cursor.order, n, None), getattr(order, n)) for n in _ORDER_FIELDS]
    return [
        f"{name} (cursor {saved!r}, stream {now!r})" for name, saved, now in pairs if saved != now
    ]


def _names(sources: Sequence[wire.Source]) -> str:
    return ", ".join(
        f"{source.dataset}/{source.split}"
        + (f" ({source.subset_rows} rows, seed {source.subset_seed})" * (source.subset_rows > 0))
        for source in sources
    )


def _of(number: int, sources: Sequence[wire.Source]) -> str:
    """Which source a field belongs to, where there are several."""
    return f" of {_names([sources[number]])}" if len(sources) > 1 else ""


def _record(cursor: wire.Cursor, ours: list[wire.Source], changed: list[int]) -> list[str]:
    return [
        f"from step {cursor.step} on, {_names([stands])} is read in version {stands.version} "
        f"(manifest {stands.manifest_digest}), before it in version {saved.version} (manifest "
        f"{saved.manifest_digest}): in the epoch under way, rows may come again or be left out"
        for saved, stands in ((cursor.sources[number], ours[number]) for number in changed)
    ]
