"""The datasets of a stream as one: rows and classes numbered through. Neither Ray nor torch."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from services.augment.boxes import PLAIN_CROP, choose_boxes
from services.errors import FormatError, IntegrityError, InvalidInputError
from services.plan.draws import Draws
from services.plan.epoch import RowPlan
from services.plan.mixture import plan_of
from services.plan.sequential import SequentialPlan
from services.plan.subset import Subset
from services.shards.cache import ShardCache
from services.shards.coefficients import CoefficientArray
from services.shards.labels import counts_of
from services.shards.manifest import load_manifest
from services.shards.reader import DatasetReader
from services.shards.store import Store, open_store
from services.shards.tally import Reading
from services.stream.ahead import Ahead, Place
from services.stream.coefficients import Coefficients
from services.stream.horizon import Horizon
from services.stream.masks import Masks
from services.stream.request import Cut, RowsRequest, SourceRequest
from services.types import UNLABELLED, IdArray, IntArray, MaskArray
from services.wire.seit import v1 as wire

logger = logging.getLogger(__name__)

_SHARDS = 1 << 32  # more than any split has: (source, shard) as one number
_CHOSEN_SHARDS = 4096  # whose rows in a subset are kept in memory, a few KB each


@lru_cache(maxsize=16)
def cache_at(directory: str, limit_bytes: int) -> ShardCache:
    """The node's cache as this process sees it: one object, so that its counters add up."""
    return ShardCache(Path(directory), limit_bytes)


def pinned(root: Store, dataset: str, split: str, version: int | None = None) -> SourceRequest:
    """A split of a version, the newest if none is named, as it stands now."""
    loaded = load_manifest(root, dataset, version)
    return SourceRequest(root.url, dataset, loaded.manifest.version, loaded.digest, split)


@dataclass(frozen=True)
class Taken:
    """Rows as they were read.

    ids: (N, h, w) uint16. labels: (N,) int64. rows: (N,) int64, -1 where nothing could be read:
    ids and label are 0 there. lost: damaged shards that some of them may have stood in.
    masks: (N, h, w) uint8 in pixels, all `IGNORED` where nothing could be read; None without masks.
    maps: (N, D, H, W) int16 coefficients, 0 where nothing could be read; None without.
    """

    ids: IdArray
    labels: IntArray
    rows: IntArray
    lost: tuple[str, ...]
    masks: MaskArray | None = None
    maps: CoefficientArray | None = None


class Sources:
    """The opened datasets of a request, and the order of their rows.

    plan: which rows each step holds. spec: the form of the tokens, the same in all sources.
    classes: names, those of the first source first; label i of the stream is `classes[i]`.
    steps_per_epoch: how many steps all rows of all sources take, those that subsets leave out too:
        fewer rows keep the number of iterations (paper, Table 6), and come round more often.

    Raises: InvalidInputError where the sources' tokens are not of one kind, or masks are asked for
    and a row has none; errors of the reader.
    """

    def __init__(self, request: RowsRequest) -> None:
        self._cut, self._seed = request.cut, request.order.seed
        self._skip_damaged = request.skip_damaged
        self._damaged: dict[tuple[int, int], str] = {}
        cache = cache_at(request.cache_dir, request.cache_bytes)
        self._readers = [
            DatasetReader(
                open_store(source.root),
                source.dataset,
                split=source.split,
                cache=cache,
                version=source.version,
            )
            for source in request.sources
        ]
        self.spec: wire.TokenSpec = self._readers[0].spec
        for reader in self._readers[1:]:
            _check_same_tokens(self._readers[0], reader)
        self.classes, self._labels = _joined_classes([reader.classes for reader in self._readers])
        self._masks: Masks | None = None
        if request.masks:
            if any(table is not None for table in self._labels):
                raise InvalidInputError(
                    f"{request.name}: the datasets have other classes, or another order of them, so"
                    " that their masks would say different things; mix datasets of one class list"
                )
            self._masks = Masks(self._readers, len(self.classes))
        self._coefficients = Coefficients(self._readers) if request.coefficients else None
        self._ahead = Ahead(self._bring)
        self._subsets = [
            _subset_of(reader, source)
            for reader, source in zip(self._readers, request.sources, strict=True)
        ]
        self._chosen = lru_cache(maxsize=_CHOSEN_SHARDS)(self._choose)
        shard_rows = [
            subset.shard_rows if subset else reader.shard_rows
            for reader, subset in zip(self._readers, self._subsets, strict=True)
        ]
        self.plan: RowPlan
        if request.sequential:
            self.plan = SequentialPlan(shard_rows[0], request.order)
        else:
            self.plan = plan_of(shard_rows, request.order, request.weights)
        last_step = self.plan.steps_per_epoch - 1 if request.sequential else None
        self._horizon, self._looking = Horizon(self.plan, last_step), threading.Lock()
        whole = sum(len(reader) for reader in self._readers)
        self.steps_per_epoch = -(-whole // request.order.global_batch_rows)

    @property
    def unlabelled(self) -> list[str]:
        """DATASET/SPLIT of each source that has rows without a label."""
        return [
            f"{reader.source.dataset}/{reader.split.name}"
            for reader in self._readers
            if any(UNLABELLED in counts_of(shard)[0] for shard in reader.split.shards)
        ]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in tokens of the grids that `take` gives."""
        return self._cut.size if self._cut else (self.spec.grid_height, self.spec.grid_width)

    @property
    def map_shape(self) -> tuple[int, ...] | None:
        """(D, H, W) of the coefficients that `take` gives; None without."""
        return None if self._coefficients is None else self._coefficients.shape

    @property
    def mask_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels of the masks that `take` gives; None without masks."""
        return None if self._masks is None else self._masks.size(self.size)

    def take(self, rows: IntArray, epochs: IntArray, ended: threading.Event | None = None) -> Taken:
        """Rows of the plan in the order asked. rows, epochs: (N,), each row's number and epoch.

        ended: of the stream, set when it wants them no more; see `end`.
        Raises: CancelledError then; IntegrityError for a shard whose bytes on storage are wrong,
        unless the request skips damaged ones; FormatError, NotFoundError and StoreError of the
        reader.
        """
        source, shard, inside = self.plan.place(rows)
        missing = self._missing(source, shard)
        if len(missing) > 1:
            self._ahead.wait(missing, ended)
        boxes = _boxes(self._cut, self.spec, Draws(self._seed, epochs, rows))
        self._leave_out(source, shard)
        try:
            taken = self._gather(source, shard, inside, boxes)
        except IntegrityError:
            if not self._skip_damaged:
                raise
            self._find_damaged(source, shard)
            self._leave_out(source, shard)
            taken = self._gather(source, shard, inside, boxes)
        taken.labels[shard < 0] = 0
        lost = tuple(self._damaged.values()) if (shard < 0).any() else ()
        return replace(taken, rows=np.where(shard < 0, -1, rows), lost=lost)

    def look_ahead(self, step: int, slots: range, ended: threading.Event | None = None) -> None:
        """Begin to fetch the shards that a rank needs some steps later, and let go of those that
        it is done with. slots: of the rank. ended: of its stream, see `end`.
        """
        with self._looking:
            if ended is not None and ended.is_set():
                return
            needs = self._horizon.at(step, slots, ended)
            if needs is None:
                return
            source, shard = self.plan.source_of(needs.all)
            for number, reader in enumerate(self._readers):
                reader.keep(shard[source == number].tolist())
            self._ahead.begin(self._missing(*self.plan.source_of(needs.later)), ended)

    def end(self, ended: threading.Event) -> None:
        """Fetch nothing more that only the stream wanted whose event this is; it is set."""
        with self._looking:
            self._horizon.forget(ended)
            self._ahead.cancel(ended)

    def let_go(self) -> None:
        """Hold nothing of the node's cache any more that was not looked ahead for."""
        for reader in self._readers:
            reader.let_go()

    def cost_ahead(self) -> Reading:
        """What was read in threads of our own since the last call."""
        return self._ahead.cost()

    def _missing(self, source: IntArray, shard: IntArray) -> list[Place]:
        """Shards of these rows that this process does not have at hand."""
        there = shard >= 0
        needed = np.unique(source[there] * _SHARDS + shard[there]).tolist()
        places = [divmod(place, _SHARDS) for place in needed]
        return [
            (number, one)
            for number, one in places
            if (number, one) not in self._damaged and not self._readers[number].holds(one)
        ]

    def _gather(
        self, source: IntArray, shard: IntArray, inside: IntArray, boxes: IntArray | None
    ) -> Taken:
        inside = self._in_shard(source, shard, inside)
        beside: dict[str, Any] = {}
        if self._masks is not None:
            beside["masks"] = self._masks.take(source, shard, inside, boxes)
        if self._coefficients is not None:
            beside["maps"] = self._coefficients.take(source, shard, inside)
        if len(self._readers) == 1:
            ids, labels = self._readers[0].take(shard, inside, boxes)
            return Taken(ids, self._renumbered(0, labels), shard, (), **beside)
        ids = np.zeros((len(source), *self.size), np.uint16)
        labels = np.full(len(source), UNLABELLED, np.int64)
        for number in np.unique(source[source >= 0]).tolist():
            own = np.flatnonzero(source == number)
            part = None if boxes is None else boxes[own]
            ids[own], found = self._readers[number].take(shard[own], inside[own], part)
            labels[own] = self._renumbered(number, found)
        return Taken(ids, labels, shard, (), **beside)

    def _in_shard(self, source: IntArray, shard: IntArray, inside: IntArray) -> IntArray:
        """(N,) rows of their shards, from rows of what a subset takes of each."""
        if not any(self._subsets):
            return inside
        placed = inside.copy()
        for number, one in np.unique(np.stack([source, shard])[:, shard >= 0], axis=1).T.tolist():
            if self._subsets[number] is not None:
                own = np.flatnonzero((source == number) & (shard == one))
                placed[own] = self._chosen(number, one)[inside[own]]
        return placed

    def _choose(self, source: int, shard: int) -> IntArray:
        """Rows of a shard that its source's subset takes, rising."""
        reader, subset = self._readers[source], self._subsets[source]
        assert subset is not None
        chosen = subset.inside(shard, reader.shard(shard).labels)
        if len(chosen) != subset.shard_rows[shard]:
            raise FormatError(
                f"{reader.source.dataset}/{reader.split.shards[shard].path} has other labels than"
                " the manifest counts: a subset of equally many rows a class cannot be drawn; run"
                " `seit verify` on the dataset, or read all of it"
            )
        return chosen

    def _bring(self, place: Place) -> None:
        """Fetch a shard, and what stands beside it, into the node's cache, or find it there."""
        number, shard = place
        self._readers[number].shard(shard)
        if self._masks is not None:
            self._masks.bring(number, shard)
        if self._coefficients is not None:
            self._coefficients.bring(number, shard)

    def _leave_out(self, source: IntArray, shard: IntArray) -> None:
        """Mark the rows of shards that are known to be damaged as not there, in `shard`."""
        for number, one in list(self._damaged):  # other threads add to it
            shard[(source == number) & (shard == one)] = -1

    def _find_damaged(self, source: IntArray, shard: IntArray) -> None:
        """Note which of these shards cannot be read."""
        for number, one in np.unique(np.stack([source, shard])[:, shard >= 0], axis=1).T.tolist():
            try:
                self._bring((number, one))
            except IntegrityError as error:
                reader = self._readers[number]
                name = f"{reader.source.dataset}/{reader.split.shards[one].path}"
                logger.error("%s: its rows are left out of this run, as allowed: %s", name, error)
                self._damaged[number, one] = name

    def _renumbered(self, source: int, labels: IntArray) -> IntArray:
        table = self._labels[source]
        if table is None:
            return labels
        renumbered: IntArray = np.where(labels == UNLABELLED, UNLABELLED, table[labels])
        return renumbered


def _subset_of(reader: DatasetReader, source: SourceRequest) -> Subset | None:
    if source.subset is None:
        return None
    labels = [counts_of(shard) for shard in reader.split.shards]
    return Subset(source.subset, reader.shard_rows, labels)


def _boxes(cut: Cut | None, spec: wire.TokenSpec, draws: Draws) -> IntArray | None:
    """(N, 4) what each row keeps of its grid, drawn as the augmenter would; None for all of it."""
    if cut is None:
        return None
    grid = spec.grid_height, spec.grid_width
    return choose_boxes(cut.crop, draws, PLAIN_CROP, grid, cut.size)


def _check_same_tokens(first: DatasetReader, other: DatasetReader) -> None:
    """Ids mean the same codes in both, or a mixture would feed a model two languages at once."""

    def form(reader: DatasetReader) -> tuple[int, int, int, int, str]:
        spec, assets = reader.spec, reader.manifest.assets
        codebook = next((asset.xxh3 for asset in assets if asset.kind == "codebook"), "none")
        return spec.grid_height, spec.grid_width, spec.codes, spec.channels, codebook

    if form(first) != form(other):
        raise InvalidInputError(
            f"datasets {first.source.dataset!r} and {other.source.dataset!r} cannot be mixed:"
            f" (grid height, width, codes, channels, codebook) are {form(first)} and"
            f" {form(other)}, so the same id would mean two things; ingest both with one tokenizer"
        )


def _joined_classes(
    listed: Sequence[tuple[str, ...]],
) -> tuple[tuple[str, ...], list[IntArray | None]]:
    """Class names of a mixture, and for each source its labels' new numbers, None for the same.

    Classes are one where their names are; of several of one name in a source (ImageNet has two
    cranes), the first are one, the second, and so on. Where a source has no names, all keep their
    numbers.
    """
    if not all(listed):
        return max(listed, key=len), [None for _ in listed]
    told_apart = [_told_apart(names) for names in listed]
    number: dict[tuple[str, int], int] = {}
    for names in told_apart:
        for name in names:
            number.setdefault(name, len(number))
    tables: list[IntArray | None] = []
    for names in told_apart:
        table = np.array([number[name] for name in names], np.int64)
        same = np.array_equal(table, np.arange(len(names)))
        tables.append(None if same else table)
    return tuple(name for name, _ in number), tables


def _told_apart(names: Sequence[str]) -> list[tuple[str, int]]:
    """Each name, and how many of the same stand before it."""
    before: Counter[str] = Counter()
    told = []
    for name in names:
        told.append((name, before[name]))
        before[name] += 1
    return told
