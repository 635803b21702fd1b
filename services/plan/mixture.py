"""Several datasets as one order of blocks, in the proportions of their weights.

Every block holds rows of one source. The sources share out a circle of CYCLE numbers, each a
stretch as long as its weight. Each lane of the mixture goes round that circle in strides of the
golden ratio, which visit all numbers once before they repeat and stay evenly spread all the while;
the lanes of a turn stand at equal distances on the circle. So both a lane and a step, which takes
blocks from all lanes, have each source in its proportion, with no bunches.

A source has a plan of its own, with the same lanes: the k-th block that a lane of the mixture gives
to a source is the k-th block of that lane of the source. Each source thus goes through its own
epochs, every row exactly once in each, a lane reads the same shards in all of them, and any step
of any run can be had at once.

A source that is too small to fill the lanes takes fewer, each fed by several of the mixture's.

Shape letters as in `services.plan.epoch`, and: D sources, C places of the cycle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from services.errors import InvalidInputError
from services.plan.draws import hash_key
from services.plan.epoch import OrderSpec, Plan, RowPlan, offsets
from services.types import IntArray

CYCLE = 4181
"""Blocks that a lane gives before the sources' turns repeat: shares are multiples of 1 / CYCLE."""

_STRIDE = 2584  # Neighbouring Fibonacci numbers: the golden ratio as nearly as a circle has it.

MAX_LANES = 256
"""Most lanes of a mixture: the cycle of each is laid out."""

_BLOCKS_A_LANE = 64  # of an epoch, at least, or a source takes fewer lanes: 1.6 % empty at most


def shares_of(weights: Sequence[float]) -> IntArray:
    """(D,) places of each source in a cycle of CYCLE, by largest remainder.

    Each is less than 1 place off weight / sum(weights) * CYCLE. Raises InvalidInputError for
    weights that are not finite and positive, or too small for a single place.
    """
    if not len(weights) or not all(math.isfinite(w) and w > 0 for w in weights):
        raise InvalidInputError(
            f"the weights of a mixture are {list(weights)}: each must be finite and above 0, or a "
            "source would never be read; leave that source out instead"
        )
    # By a power of two, which changes no digit: the sum of the largest numbers is none otherwise.
    unit = math.frexp(max(weights))[1]
    given, weights = weights, [math.ldexp(weight, -unit) for weight in weights]
    total = math.fsum(weights)
    # Rounded, so that weights in other units (2 to 1, 0.2 to 0.1) do not tip a tie of remainders.
    exact = [round(weight / total * CYCLE, 6) for weight in weights]
    shares = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_remainder[: CYCLE - sum(shares)]:
        shares[i] += 1
    if 0 in shares:
        small = shares.index(0)
        raise InvalidInputError(
            f"weight {given[small]:g} of source {small} is {weights[small] / total:.2g} of all: "
            f"at least {1 / CYCLE:.2g} is valid, or the source gets no block of {CYCLE} and would "
            "never be read; raise its weight (weights are the rows where none are given), or "
            "leave it out"
        )
    return np.array(shares, dtype=np.int64)


def plan_of(
    sources: Sequence[IntArray], order: OrderSpec, weights: Sequence[float] = ()
) -> Plan | MixturePlan:
    """The shuffled order of one dataset, or of a mixture of several.

    A single source has a `Plan`, whose epochs end with a step: a weight means nothing there.
    """
    return Plan(sources[0], order) if len(sources) == 1 else MixturePlan(sources, order, weights)


@dataclass(frozen=True, eq=False)
class _Source:
    """One source of a mixture.

    row_begin: number of its first row in the mixture. share: places in a lane's cycle.
    places: (L * share,) where they are, rising; place p of lane l is l * CYCLE + p.
    """

    plan: Plan
    row_begin: int
    share: int
    places: IntArray


class MixturePlan(RowPlan):
    """The shuffled order of several sources, endless over the epochs of each.

    sources: the shard_rows (S_i,) of each. Rows and shards are numbered through: those of a source
    follow those of the sources before it; `place` tells which source a row belongs to.
    weights: share of each source in the blocks; rows of each where none are given.

    steps_per_epoch: a round, in which as many rows are visited as all sources have; what counts
    for a row is the epoch of its source, in `Span.epoch`. Rows that do not exist stand at the end
    of a source's epoch: fewer than 1/64 of its blocks, and the rest of one.
    """

    def __init__(
        self, sources: Sequence[IntArray], order: OrderSpec, weights: Sequence[float] = ()
    ) -> None:
        if not sources or len(weights) not in (0, len(sources)):
            raise InvalidInputError(
                f"a mixture of {len(sources)} sources got {len(weights)} weights: pass at least "
                "one source, and one weight for each or none at all"
            )
        if order.lanes > MAX_LANES:
            raise InvalidInputError(
                f"lanes={order.lanes} is more than the {MAX_LANES} that a mixture can have: the "
                "cycle of each lane stands in memory; choose fewer lanes"
            )
        super().__init__(np.concatenate([np.asarray(s, dtype=np.int64) for s in sources]), order)
        self.source_shards = offsets(np.array([len(shards) for shards in sources]))  # (D + 1,)
        rows = [int(np.sum(shards)) for shards in sources]
        if 0 in rows:
            raise InvalidInputError(
                f"source {rows.index(0)} of the mixture has no rows: its turns would be empty; "
                "leave it out"
            )
        self.shares = shares_of(weights if len(weights) else rows)
        self._turns = self.blocks_per_step // order.lanes  # blocks a lane gives to a step
        self._owner = _cycles(self.shares, order)  # (L, C) sources
        row_begin = np.cumsum([0, *rows])
        self._sources = [
            _Source(
                plan=Plan(shards, _own_order(order, number, rows[number])),
                row_begin=int(row_begin[number]),
                share=int(self.shares[number]),
                places=np.flatnonzero(self._owner == number),
            )
            for number, shards in enumerate(sources)
        ]

    @property
    def plans(self) -> list[Plan]:
        """Each source's own plan, whose rows count from 0: for measuring how well it shuffles."""
        return [source.plan for source in self._sources]

    def blocks(self, steps: IntArray, slots: IntArray) -> tuple[IntArray, IntArray]:
        lane = slots % self.order.lanes  # (J,)
        turn = steps * self._turns + slots // self.order.lanes  # (J,) blocks the lane gave before
        owner = self._owner[lane, turn % CYCLE]  # (J,)
        epochs = np.empty(len(slots), dtype=np.int64)
        rows = np.empty((len(slots), self.order.block_rows), dtype=np.int64)
        for number in np.unique(owner):
            source, own = self._sources[number], np.flatnonzero(owner == number)
            epochs[own], found = source.plan.blocks(
                *_own_blocks(source, self.order.lanes, turn[own], lane[own])
            )
            rows[own] = np.where(found < 0, -1, found + source.row_begin)
        return epochs, rows

    def block_shards(self, steps: IntArray, slots: IntArray) -> IntArray:
        """Of every source: those that the lanes of these blocks are at, whoever's turn it is."""
        lane = slots % self.order.lanes  # (J,)
        turn = steps * self._turns + slots // self.order.lanes  # (J,) blocks the lane gave before
        found = [
            begin + source.plan.block_shards(*_own_blocks(source, self.order.lanes, turn, lane))
            for begin, source in zip(self.source_shards, self._sources, strict=False)
        ]
        return np.concatenate(found)


def _own_order(order: OrderSpec, number: int, rows: int) -> OrderSpec:
    """The order of a source's own plan, whose step is one block of each of its lanes.

    A source's lanes end their epochs together, by blocks without rows where need be. Lanes of at
    least _BLOCKS_A_LANE blocks keep those few.
    """
    blocks = rows // order.block_rows
    fitting = [
        lanes
        for lanes in range(1, order.lanes + 1)
        if order.lanes % lanes == 0 and lanes * _BLOCKS_A_LANE <= blocks
    ]
    lanes = max(fitting, default=1)
    return replace(
        order,
        seed=hash_key("source", order.seed, number),
        global_batch_rows=lanes * order.block_rows,
        lanes=lanes,
    )


def _cycles(shares: IntArray, order: OrderSpec) -> IntArray:
    """(L, C) source of each turn of each lane, until they repeat."""
    begin = hash_key("cycle", order.seed) % CYCLE + np.arange(order.lanes) * CYCLE // order.lanes
    number = (begin[:, None] + np.arange(CYCLE) * _STRIDE) % CYCLE  # (L, C) on the circle
    return np.searchsorted(np.cumsum(shares), number, side="right").astype(np.int64)


def _own_blocks(
    source: _Source, lanes: int, turn: IntArray, lane: IntArray
) -> tuple[IntArray, IntArray]:
    """Which (step, slot) of the source's own plan these blocks of the mixture are, (n,) and (n,).

    A lane of the source is fed by every lane of the mixture that has the same remainder. The
    blocks of those that came before are counted: in earlier turns, and by smaller lanes in this.
    """
    own_lanes = source.plan.order.lanes
    slot = lane % own_lanes  # (n,)
    fed_by = slot[:, None] + np.arange(0, lanes, own_lanes)  # (n, L / own lanes)
    turns = turn[:, None] + (fed_by < lane[:, None])  # (n, L / own lanes) that each has given
    rounds, place = np.divmod(turns, CYCLE)
    in_round = np.searchsorted(source.places, fed_by * CYCLE + place) - fed_by * source.share
    return (rounds * source.share + in_round).sum(axis=1), slot
