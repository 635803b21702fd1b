"""Which rows make up each block of each step, by arithmetic.

The shards of a split get a fixed shuffled order (from the seed alone); their rows laid end to end
are cut into `lanes` ranges that stay the same for good. In each epoch a lane shuffles its
segments (the shards, or parts of shards, in its range), takes up to `window_shards` of them at a
time as a window, and visits a window's rows in a keyed random order. Lane j % lanes feeds slot j.

Nothing here knows the number of workers: ranks share out the slots of a step. Nothing is laid
out row by row either, so any step of any epoch can be had at once, at a cost that depends on the
number of shards and not on the number of rows.

Shape letters: S shards, L lanes, M segments, V windows, J blocks asked for, B rows of a block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from services.errors import InvalidInputError
from services.plan.draws import KeyArray, check_seed, derive, hash_key, permute, shuffle
from services.types import IntArray, Span

LOOK_AHEAD_ROWS = 32_768
"""How long before they are due shards begin to be fetched, in rows of the whole stream."""

_MAX_COUNT = 2**32 - 1


def _divisors(number: int) -> str:
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return ", ".join(str(d) for d in sorted({*small, *(number // d for d in small)}))


def offsets(counts: IntArray) -> IntArray:
    """(n,) sizes to (n + 1,) boundaries from 0."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)])


@dataclass(frozen=True)
class OrderSpec:
    """Everything that decides the order of rows; the number of workers is not in it.

    seed: 0 <= seed < 2**64.
    global_batch_rows: rows of one step over all workers.
    block_rows: rows that are never split between workers; divides global_batch_rows.
    lanes: fixed partitions of the rows; divides the blocks of a step.
    window_shards: most shards of a lane that one shuffle mixes.
    Raises InvalidInputError for anything else.
    """

    seed: int
    global_batch_rows: int
    block_rows: int
    lanes: int
    window_shards: int

    def __post_init__(self) -> None:
        check_seed("seed", self.seed)
        for name in ("global_batch_rows", "block_rows", "lanes", "window_shards"):
            value = getattr(self, name)
            if not 1 <= value <= _MAX_COUNT:
                raise InvalidInputError(
                    f"{name}={value} is outside of [1, {_MAX_COUNT}]: no step could be planned; "
                    "pass a positive number"
                )
        if self.global_batch_rows % self.block_rows:
            raise InvalidInputError(
                f"block_rows={self.block_rows} does not divide "
                f"global_batch_rows={self.global_batch_rows}: a step would need part of a block; "
                f"choose one of {_divisors(self.global_batch_rows)}"
            )
        if self.blocks_per_step % self.lanes:
            raise InvalidInputError(
                f"lanes={self.lanes} does not divide the {self.blocks_per_step} blocks of a step: "
                "lanes would run dry at different times; "
                f"choose one of {_divisors(self.blocks_per_step)}"
            )

    @property
    def blocks_per_step(self) -> int:
        return self.global_batch_rows // self.block_rows


class RowPlan(ABC):
    """What every plan offers; a subclass decides which rows a slot holds.

    rows: N, rows of the split. steps_per_epoch: ceil(N / global batch).
    blocks_per_step: slots of a step. shard_rows: (S,) int64.
    source_shards: (D + 1,) where the shards of each dataset begin, and S; (0, S) for one.
    """

    def __init__(self, shard_rows: IntArray, order: OrderSpec) -> None:
        self.shard_rows = np.asarray(shard_rows, dtype=np.int64)
        if self.shard_rows.ndim != 1 or (self.shard_rows < 0).any():
            raise InvalidInputError(
                "shard_rows must be one non-negative number for each shard, got shape "
                f"{self.shard_rows.shape}: rows could not be numbered; pass the manifest's counts"
            )
        self.order = order
        self.rows = int(self.shard_rows.sum())
        if self.rows == 0:
            raise InvalidInputError(
                f"the split has no rows ({len(self.shard_rows)} shards): there is nothing to plan;"
                " choose another split or version"
            )
        self.blocks_per_step = order.blocks_per_step
        self.steps_per_epoch = -(-self.rows // order.global_batch_rows)
        self._shard_begin = offsets(self.shard_rows)  # (S + 1,)
        self.source_shards = np.array([0, len(self.shard_rows)], dtype=np.int64)

    @abstractmethod
    def blocks(self, steps: IntArray, slots: IntArray) -> tuple[IntArray, IntArray]:
        """Blocks of any steps, (J,) and (J,), to their epochs (J,) and row numbers (J, B), -1
        where there is none. Steps and slots must be there.
        """

    @abstractmethod
    def block_shards(self, steps: IntArray, slots: IntArray) -> IntArray:
        """(n,) sorted shards that the blocks, (J,) and (J,), draw their rows from, and all others
        that a shuffle window mixes with those.
        """

    def open_shards(self, step: int, slots: range) -> IntArray:
        """(n,) sorted shards that a step's slots draw on: those of every window that is open.

        Raises InvalidInputError for a step that is not there; slots are those of `rank_slots`.
        """
        self._check_step(step)
        return self.block_shards(np.full(len(slots), step), np.array(slots, dtype=np.int64))

    def _check_step(self, step: int) -> None:
        if step < 0:
            raise InvalidInputError(
                f"step={step} is negative: a run begins at step 0; pass steps from 0"
            )

    def spans(self, step: int, slots: Iterable[int]) -> list[Span]:
        """Some blocks of a step. Raises InvalidInputError for a step or slot that is not there."""
        self._check_step(step)
        wanted = np.fromiter(slots, dtype=np.int64)  # (J,)
        outside = (wanted < 0) | (wanted >= self.blocks_per_step)
        if outside.any():
            raise InvalidInputError(
                f"slot={wanted[outside][0]} is outside of [0, {self.blocks_per_step}): a step has "
                "no such block; take slots from rank_slots()"
            )
        epochs, rows = self.blocks(np.full(len(wanted), step), wanted)  # (J,), (J, B)
        return [Span(step, int(j), int(epochs[at]), rows[at]) for at, j in enumerate(wanted)]

    def step_rows(self, steps: Sequence[int], slots: range) -> tuple[IntArray, IntArray]:
        """Epochs (T, J) and row numbers (T, J * B) of the same slots of T rising steps.

        Several steps at a time cost little more than one. Raises InvalidInputError for a step that
        is not there; slots are those of `rank_slots`.
        """
        for step in (steps[0], steps[-1]):
            self._check_step(step)
        step_of = np.repeat(np.array(steps, dtype=np.int64), len(slots))  # (T * J,)
        slot_of = np.tile(np.array(slots, dtype=np.int64), len(steps))
        epochs, rows = self.blocks(step_of, slot_of)
        return epochs.reshape(len(steps), -1), rows.reshape(len(steps), -1)

    def span(self, step: int, slot: int) -> Span:
        """One block. Raises InvalidInputError for a step or slot that does not exist."""
        return self.spans(step, [slot])[0]

    def step_spans(self, step: int) -> list[Span]:
        """All blocks of a step, by slot."""
        return self.spans(step, range(self.blocks_per_step))

    def locate(self, rows: IntArray) -> tuple[IntArray, IntArray]:
        """Row numbers (any shape) to (shard index, row inside that shard); -1 stays -1 in both.

        Raises InvalidInputError for rows outside of [-1, N).
        """
        rows = np.asarray(rows, dtype=np.int64)
        if ((rows < -1) | (rows >= self.rows)).any():
            raise InvalidInputError(
                f"rows {rows.min()}..{rows.max()} reach outside of [-1, {self.rows}): the split "
                "has no such row; pass rows of this plan's spans"
            )
        shard = np.searchsorted(self._shard_begin, rows, side="right").astype(np.int64) - 1
        return shard, np.where(rows < 0, -1, rows - self._shard_begin[shard])

    def place(self, rows: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """Row numbers to (source, shard of that source, row inside that shard); -1 stays -1.

        Raises InvalidInputError for rows outside of [-1, N).
        """
        shard, inside = self.locate(rows)
        return *self.source_of(shard), inside

    def source_of(self, shards: IntArray) -> tuple[IntArray, IntArray]:
        """Shards of the plan to (source, shard of that source); -1 stays -1."""
        source = np.searchsorted(self.source_shards, shards, side="right").astype(np.int64) - 1
        return source, np.where(shards < 0, -1, shards - self.source_shards[source])

    def rank_slots(self, rank: int, world: int) -> range:
        """The slots of each step that belong to one of `world` workers: a contiguous share, one
        slot larger for some where the blocks do not divide.
        """
        if not 1 <= world <= self.blocks_per_step:
            raise InvalidInputError(
                f"world={world} is outside of [1, {self.blocks_per_step}], the blocks of a step: a"
                " worker would have nothing to do; run on fewer workers, or take a smaller"
                " block_rows"
            )
        if not 0 <= rank < world:
            raise InvalidInputError(
                f"rank={rank} is outside of [0, {world}): it would read nobody's share; "
                "pass the worker's rank"
            )
        begin, end = (one * self.blocks_per_step // world for one in (rank, rank + 1))
        return range(begin, end)

    def _present(self, turn: IntArray, slots: IntArray) -> IntArray:
        """(J,) how many rows of each block exist: all, except at the end of an epoch's last step.

        turn: which step of its epoch each block belongs to.
        """
        block = self.order.block_rows
        rows_left = self.rows - turn * self.order.global_batch_rows
        present: IntArray = np.clip(rows_left - slots * block, 0, block)
        return present


@dataclass(frozen=True, eq=False)
class _Visit:
    """One epoch's order of the segments. Lanes follow each other on one axis of N positions.

    first_row: (M,) row number at which each segment begins, segments as visited.
    begin: (M + 1,) position at which each begins, and N.
    window_begin: (V + 1,) position at which each window begins, and N.
    window_key: (V,) uint64, key of the order of the rows inside each.
    """

    epoch: int
    first_row: IntArray
    begin: IntArray
    window_begin: IntArray
    window_key: KeyArray


class Plan(RowPlan):
    """The shuffled order for training, endless over epochs; each visits every row exactly once.

    Only the last step of an epoch has rows that do not exist, in its last slots.
    """

    def __init__(self, shard_rows: IntArray, order: OrderSpec) -> None:
        super().__init__(shard_rows, order)
        self._turns = self.blocks_per_step // order.lanes  # blocks a lane gives to a step
        self._lane_begin = offsets(self._lane_rows())  # (L + 1,) positions
        shuffled = shuffle(hash_key("shards", order.seed), len(self.shard_rows))  # (S,)
        shard_at = offsets(self.shard_rows[shuffled])  # (S + 1,) positions
        # Cutting at the ends of shards and of lanes alike gives the segments. Shards without rows
        # begin where the next one does: they leave no cut, and side="right" passes over them.
        cuts = np.insert(shard_at, np.searchsorted(shard_at, self._lane_begin), self._lane_begin)
        cuts = cuts[np.flatnonzero(np.diff(cuts, prepend=-1))]  # (M + 1,)
        owner = np.searchsorted(shard_at, cuts[:-1], side="right") - 1  # (M,)
        self._segment_row = self._shard_begin[shuffled[owner]] + cuts[:-1] - shard_at[owner]
        self._segment_rows = np.diff(cuts)  # (M,)
        self._segment_lane = np.searchsorted(self._lane_begin, cuts[:-1], side="right") - 1
        self._window_first = self._cut_windows()  # (V,) segments
        self._visits: tuple[_Visit, ...] = ()

    def _lane_rows(self) -> IntArray:
        """(L,) rows of each lane: an equal share of all full steps, and its slots of the rest."""
        order = self.order
        full_steps, rest = divmod(self.rows, order.global_batch_rows)
        begin = np.arange(self.blocks_per_step) * order.block_rows  # (slots,)
        tail = np.clip(rest - begin, 0, order.block_rows)
        tail_of_lane: IntArray = tail.reshape(self._turns, order.lanes).sum(axis=0)  # (L,)
        return tail_of_lane + full_steps * self._turns * order.block_rows

    def _cut_windows(self) -> IntArray:
        """(V,) first segment of each window, by place in a lane: the same in every epoch.

        A lane's windows are of nearly equal size, so that none is left with a shard of its own.
        """
        lane = self._segment_lane  # (M,)
        segments = np.bincount(lane, minlength=self.order.lanes)[lane]  # (M,) of its lane
        place = np.arange(len(lane)) - np.searchsorted(lane, lane)  # (M,) within its lane
        windows = -(-segments // self.order.window_shards)  # (M,) of its lane
        window = place * windows // segments  # (M,) within its lane
        opens = np.ones(len(lane), dtype=np.bool_)
        opens[1:] = (np.diff(lane) != 0) | (np.diff(window) != 0)
        return np.flatnonzero(opens)

    def _visit_of(self, epoch: int) -> _Visit:
        """Two epochs are kept: around an epoch's end, blocks of both are asked for by turns."""
        visit = next((known for known in self._visits if known.epoch == epoch), None)
        if visit is None:
            seed, lane = self.order.seed, self._segment_lane
            visited = shuffle(hash_key("segments", seed, epoch), len(lane), lane)  # (M,)
            begin = offsets(self._segment_rows[visited])
            visit = _Visit(
                epoch=epoch,
                first_row=self._segment_row[visited],
                begin=begin,
                window_begin=np.append(begin[self._window_first], self.rows),
                window_key=derive(hash_key("windows", seed, epoch), self._window_first),
            )
            self._visits = (visit, *self._visits[:1])
        return visit

    def window_shards(self, epoch: int) -> list[list[tuple[float, IntArray]]]:
        """For each lane its windows of an epoch, as visited: where each begins, in [0, 1) of the
        lane's rows, and which shards it mixes, (n,) sorted. A lane without rows has none.
        """
        visit = self._visit_of(epoch)
        shards = self.locate(visit.first_row)[0]  # (M,)
        ends = np.append(self._window_first[1:], len(shards))  # (V,) segments
        lanes: list[list[tuple[float, IntArray]]] = [[] for _ in range(self.order.lanes)]
        for window, (first, end) in enumerate(zip(self._window_first, ends, strict=True)):
            lane = int(self._segment_lane[first])
            begin, stop = self._lane_begin[lane], self._lane_begin[lane + 1]
            at = float((visit.window_begin[window] - begin) / (stop - begin))
            lanes[lane].append((at, np.unique(shards[first:end])))
        return lanes

    def blocks(self, steps: IntArray, slots: IntArray) -> tuple[IntArray, IntArray]:
        epochs, turns = np.divmod(steps, self.steps_per_epoch)
        rows = np.empty((len(steps), self.order.block_rows), dtype=np.int64)
        for epoch in np.unique(epochs):
            own = np.flatnonzero(epochs == epoch)
            rows[own] = self._rows_in(int(epoch), turns[own], slots[own])
        return epochs, rows

    def block_shards(self, steps: IntArray, slots: IntArray) -> IntArray:
        epochs, turns = np.divmod(steps, self.steps_per_epoch)
        begin, lane_end = self._block_begin(turns, slots), self._lane_begin[1:]  # (J,), (L,)
        end = np.minimum(begin + self.order.block_rows, lane_end[slots % self.order.lanes])
        found = [np.zeros(0, dtype=np.int64)]
        for epoch in np.unique(epochs):
            own = np.flatnonzero((epochs == epoch) & (begin < end))
            found.append(self._mixed(self._visit_of(int(epoch)), begin[own], end[own]))
        return np.unique(np.concatenate(found))

    def _mixed(self, visit: _Visit, begin: IntArray, end: IntArray) -> IntArray:
        """(n,) shards of all windows that reach into [begin, end), (J,) and (J,) positions."""
        opens = np.zeros(len(visit.window_begin), dtype=np.int64)  # (V + 1,)
        np.add.at(opens, np.searchsorted(visit.window_begin, begin, side="right") - 1, 1)
        np.add.at(opens, np.searchsorted(visit.window_begin, end, side="left"), -1)
        ends = np.append(self._window_first[1:], len(visit.first_row))  # (V,) segments
        rows = [
            visit.first_row[self._window_first[window] : ends[window]]
            for window in np.flatnonzero(np.cumsum(opens)).tolist()
        ]
        return self.locate(np.concatenate(rows))[0] if rows else np.zeros(0, dtype=np.int64)

    def _block_begin(self, turns: IntArray, slots: IntArray) -> IntArray:
        """(J,) positions at which blocks begin. turns: which step of its epoch each belongs to."""
        before = turns * self._turns + slots // self.order.lanes  # (J,) blocks that the lane gave
        lane_begin = self._lane_begin[slots % self.order.lanes]
        position: IntArray = lane_begin + before * self.order.block_rows
        return position

    def _rows_in(self, epoch: int, turn: IntArray, slots: IntArray) -> IntArray:
        """(J, B) row numbers of blocks of one epoch; turn: which of its steps each belongs to."""
        begin = self._block_begin(turn, slots)  # (J,) positions
        inside = np.arange(self.order.block_rows)  # (B,)
        exists = inside < self._present(turn, slots)[:, None]  # (J, B)
        rows = np.full(exists.shape, -1, dtype=np.int64)
        rows[exists] = self._rows_at(self._visit_of(epoch), (begin[:, None] + inside)[exists])
        return rows

    @staticmethod
    def _rows_at(visit: _Visit, position: IntArray) -> IntArray:
        """(n,) positions of an epoch to (n,) row numbers."""
        window = np.searchsorted(visit.window_begin, position, side="right") - 1
        window_begin = visit.window_begin[window]
        size = visit.window_begin[window + 1] - window_begin
        key = visit.window_key[window]
        place: IntArray = window_begin + permute(position - window_begin, size, key)
        segment = np.searchsorted(visit.begin, place, side="right") - 1
        return visit.first_row[segment] + (place - visit.begin[segment])
