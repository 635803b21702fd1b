"""What a run of any size asks of storage and caches, from its plan, before there is a cluster.

The plan is the real one: lanes, windows and the order of shards of each epoch are those that a run
of this seed would have. Only the rows stay unread: a node's cache is followed shard by shard, which
takes what the number of shards takes, not the number of rows.

Rates are measured ones (`Rates` says where) and stand for the machine that they were measured on.
What depends on them (times, cores) is an estimate; bytes, hits and shuffle follow from the plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from services.errors import InvalidInputError
from services.plan.epoch import LOOK_AHEAD_ROWS, OrderSpec, Plan
from services.plan.quality import ShuffleQuality, shuffle_quality
from services.types import IntArray

HELD_SHARE = 2
"""A process holds at most half of the cache's limit (services/shards/cache.py)."""
_SPARE_SHARE = 64
"""Up to a 64th of the limit is made free at once (services/shards/cache_folder.py)."""

_FETCHES = 4  # shards that a process fetches at a time (services/stream/ahead.py)
_QUALITY_STEPS = 8
_QUALITY_ROWS = 2**20  # looked at for the shuffle's quality, at most
_MAX_SHARDS = 2 * 10**7
_MAX_BLOCKS = 2**17  # of a step, and so trainers and nodes: half a minute, in 2.5 GB of memory
_MAX_BATCH_ROWS = 2**24
_MAX_FOLLOWED = 10**8  # shards and lanes over all epochs: minutes
_MOST = 2**63 - 1  # of a number that is counted with

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Rates:
    """Measured on 2 cores of x86 (`benchmarks/results/*.2core-x86.json`), but for the last three.

    start_seconds: from a trainer's start on Ray until its first batch, with a cold cache on a local
        disk (stream_peers, local_seit_ray_2_processes_first_batch_cold_seconds); behind
        augmentation actors on GPUs, which load torch first, it is more: 5 s where actors were on
        CPUs (stream_start, without the head start).
    decode_rows: rows/s that one process decodes into the cache (codec, shards_images_per_second).
    serve_rows: rows/s of a core that fetches from a warm cache and cuts
        (stream_peers, local_seit_rows_per_core_second).
    stored_bytes: of a row in a shard (codec, file_bytes_per_image).
    request_seconds: until storage begins to answer; an assumption, as the next two are.
    request_bytes: bytes/s of one request.
    node_bytes: bytes/s that a node's network gives.
    """

    start_seconds: float = 1.088
    decode_rows: float = 573_426
    serve_rows: float = 505_817
    stored_bytes: float = 1008.93
    request_seconds: float = 0.05
    request_bytes: float = 80e6
    node_bytes: float = 1.25e9


@dataclass(frozen=True)
class Scenario:
    """A run to be looked at.

    rows: of the training split. shard_rows: of a full shard. nodes, gpus: gpus is a multiple of
    nodes, one trainer each. cache_bytes: limit of each node's cache. order: of the stream.
    gpu_rows: rows/s that one GPU trains. cached_bytes: of a row in the cache, see entry.py.
    epochs: how many are followed; the last one stands for all later ones.
    ahead_rows: how long before they are due shards are fetched, in rows of all nodes.
    Raises: InvalidInputError for what no run can be.
    """

    rows: int
    shard_rows: int
    nodes: int
    gpus: int
    cache_bytes: int
    order: OrderSpec
    gpu_rows: float
    cached_bytes: float
    epochs: int = 3
    ahead_rows: int = LOOK_AHEAD_ROWS
    rates: Rates = Rates()

    def __post_init__(self) -> None:
        counted = "rows", "shard_rows", "nodes", "gpus", "cache_bytes", "gpu_rows", "epochs"
        for name in (*counted, "cached_bytes"):
            if not 0 < getattr(self, name) <= _MOST:
                raise InvalidInputError(
                    f"{name} is {getattr(self, name)}, expected more than 0 and at most "
                    f"{_MOST:.3g}: no run is like that; correct it"
                )
        if self.gpus % self.nodes:
            raise InvalidInputError(
                f"{self.gpus} GPUs on {self.nodes} nodes: nodes would have unequal shares of a "
                "step; give a multiple of the nodes"
            )
        if self.order.blocks_per_step % self.gpus:
            raise InvalidInputError(
                f"{self.gpus} GPUs do not divide the {self.order.blocks_per_step} blocks of a step:"
                " all would wait for those with the larger shares; give a divisor, or other blocks"
            )
        shards, lanes = -(-self.rows // self.shard_rows), self.order.lanes
        blocks, batch = self.order.blocks_per_step, self.order.global_batch_rows
        if shards > _MAX_SHARDS:
            raise InvalidInputError(
                f"{self.rows} rows in shards of {self.shard_rows} are more than {_MAX_SHARDS:,} "
                "shards: the plan itself would take gigabytes; use larger shards"
            )
        if blocks > _MAX_BLOCKS or batch > _MAX_BATCH_ROWS:
            raise InvalidInputError(
                f"a step of {batch:,} rows in {blocks:,} blocks for {self.gpus:,} GPUs, expected at"
                f" most {_MAX_BATCH_ROWS:,} rows in {_MAX_BLOCKS:,} blocks: following it would take"
                " hours and all memory; simulate a part, as many times fewer rows on as many times"
                " fewer nodes"
            )
        if self.epochs * (shards + lanes) > _MAX_FOLLOWED:
            raise InvalidInputError(
                f"{self.epochs:,} epochs of {shards:,} shards in {lanes:,} lanes are more than"
                f" {_MAX_FOLLOWED:,} to follow: it would take hours; give fewer epochs (the last of"
                " three stands for all later ones), or larger shards"
            )


@dataclass(frozen=True)
class EpochTraffic:
    """One epoch over all nodes. bytes, requests: from storage, what is fetched ahead for the next
    epoch included. uses: shards that nodes asked for.

    hits: share of the uses for which a node had the shard. busiest_node_bytes: of one node.
    """

    bytes: float
    requests: int
    uses: int
    busiest_node_bytes: float

    @property
    def hits(self) -> float:
        return 1 - self.requests / self.uses


@dataclass(frozen=True)
class Simulation:
    """What a scenario comes to.

    stored_bytes: of the split. shards: of it. open_bytes: most that a node holds in its cache at
    once: the windows that are open, and those fetched ahead. epochs: traffic of each epoch that was
    followed. epoch_seconds: at the GPUs' rate. first_batch_seconds: from start, caches empty.
    first_store_rate, later_store_rate: bytes/s that storage has to give so that no GPU waits, in
    the first and in later epochs.
    serve_cores: cores of each node that fetching takes; augmentation comes on top.
    quality: of the shuffle.
    """

    stored_bytes: float
    shards: int
    open_bytes: float
    epochs: tuple[EpochTraffic, ...]
    epoch_seconds: float
    first_batch_seconds: float
    serve_cores: float
    quality: ShuffleQuality

    @property
    def first_store_rate(self) -> float:
        return self.epochs[0].bytes / self.epoch_seconds

    @property
    def later_store_rate(self) -> float:
        return self.epochs[-1].bytes / self.epoch_seconds


def shard_sizes(rows: int, shard_rows: int) -> IntArray:
    """(S,) rows of each shard: full ones, and the rest."""
    full, rest = divmod(rows, shard_rows)
    sizes = np.full(full + (rest > 0), shard_rows, dtype=np.int64)
    if rest:
        sizes[-1] = rest
    return sizes


def simulate(scenario: Scenario, progress: Progress | None = None) -> Simulation:
    """Follow every node's cache through some epochs.

    progress: called with (nodes done, nodes).
    Raises: InvalidInputError if the GPUs cannot share out a step, or if a process cannot hold the
    shards that are open at a time: they would then be evicted between uses, and fetched many times.
    """
    sizes = shard_sizes(scenario.rows, scenario.shard_rows)  # (S,)
    plan = Plan(sizes, scenario.order)
    per_node = scenario.gpus // scenario.nodes
    lanes_of = [_lanes(plan, scenario.gpus, node, per_node) for node in range(scenario.nodes)]
    ahead = scenario.ahead_rows / scenario.rows  # epochs
    visits = [plan.window_shards(epoch) for epoch in range(scenario.epochs + math.ceil(ahead))]
    cached = (sizes * scenario.cached_bytes).tolist()  # (S,)
    stored = sizes * scenario.rates.stored_bytes  # (S,)
    bytes_ = np.zeros((scenario.epochs, scenario.nodes))
    requests = np.zeros(scenario.epochs, dtype=np.int64)
    uses = np.zeros(scenario.epochs, dtype=np.int64)
    most_open = 0.0
    for node, lanes in enumerate(lanes_of):
        cache = _Cache(scenario.cache_bytes, cached)
        for turn in _turns(visits, lanes, ahead, scenario.epochs):
            cache.let_go(turn.closes)
            epoch = int(turn.at)
            for shard in turn.opens:
                uses[epoch] += 1
                if not cache.use(shard):
                    requests[epoch] += 1
                    bytes_[epoch, node] += float(stored[shard])
            most_open = max(most_open, cache.held_bytes)
        if HELD_SHARE * most_open > scenario.cache_bytes:
            raise _too_small(scenario, most_open)
        if progress:
            progress(node + 1, scenario.nodes)
    traffic = tuple(
        EpochTraffic(
            float(bytes_[epoch].sum()),
            int(requests[epoch]),
            int(uses[epoch]),
            float(bytes_[epoch].max()),
        )
        for epoch in range(scenario.epochs)
    )
    rate = scenario.gpus * scenario.gpu_rows
    return Simulation(
        stored_bytes=float(stored.sum()),
        shards=len(sizes),
        open_bytes=most_open,
        epochs=traffic,
        epoch_seconds=scenario.rows / rate,
        first_batch_seconds=_first_batch(scenario, plan, lanes_of[0]),
        serve_cores=per_node * scenario.gpu_rows / scenario.rates.serve_rows,
        quality=_quality(plan),
    )


def _lanes(plan: Plan, world: int, node: int, per_node: int) -> list[int]:
    """Lanes that the trainers of a node read."""
    slots = [
        slot
        for rank in range(node * per_node, (node + 1) * per_node)
        for slot in plan.rank_slots(rank, world)
    ]
    return sorted({slot % plan.order.lanes for slot in slots})


@dataclass(frozen=True)
class _Turn:
    """A moment, in epochs from the start, at which some shards begin or cease to be needed."""

    at: float
    opens: list[int]
    closes: list[int]


def _turns(
    visits: list[list[list[tuple[float, IntArray]]]], lanes: list[int], ahead: float, epochs: int
) -> Iterator[_Turn]:
    """Windows of several lanes, each from when it is fetched until it is over.

    visits: windows by epoch and lane. ahead: how many epochs before it begins a window is fetched.
    """
    turns = []
    for lane in lanes:
        windows = [
            (epoch + begin, shards.tolist())
            for epoch, visit in enumerate(visits)
            for begin, shards in visit[lane]
        ]
        if not windows:
            continue  # a lane without rows
        ends = [begin for begin, _ in windows[1:]] + [float(len(visits))]
        for (begin, shards), end in zip(windows, ends, strict=True):
            turns.append(_Turn(max(0.0, begin - ahead), shards, []))
            turns.append(_Turn(end, [], shards))
    for turn in sorted(turns, key=lambda turn: turn.at):
        if turn.at >= epochs:
            return
        yield turn


class _Cache:
    """Which shards a node has, under the policy of services/shards/cache.py.

    Those that are needed now or soon are held; of the others the most recently used go first.
    """

    def __init__(self, limit: int, sizes: list[float]) -> None:
        self._limit, self._sizes = limit, sizes
        self._bytes = 0.0
        self._idle: dict[int, None] = {}  # in order of use; those that nobody holds
        self._held: dict[int, int] = {}  # how many windows need each
        self.held_bytes = 0.0

    def use(self, shard: int) -> bool:
        """Whether it is there; it is, afterwards, until it is let go as often as it was used."""
        there = shard in self._idle or shard in self._held
        if not there:
            self._make_room(self._limit - self._sizes[shard])
            self._bytes += self._sizes[shard]
        self._idle.pop(shard, None)
        if shard not in self._held:
            self.held_bytes += self._sizes[shard]
        self._held[shard] = self._held.get(shard, 0) + 1
        return there

    def _make_room(self, room: float) -> None:
        if self._bytes <= room:
            return
        least = room - self._limit // _SPARE_SHARE
        while self._idle:
            last = next(reversed(self._idle))
            if self._bytes <= room and self._bytes - self._sizes[last] < least:
                break
            del self._idle[last]
            self._bytes -= self._sizes[last]

    def let_go(self, shards: list[int]) -> None:
        for shard in shards:
            self._held[shard] -= 1
            if not self._held[shard]:
                del self._held[shard]
                self.held_bytes -= self._sizes[shard]
                self._idle[shard] = None


def _too_small(scenario: Scenario, wanted: float) -> InvalidInputError:
    return InvalidInputError(
        f"cache_bytes is {scenario.cache_bytes:,} and a node has {wanted:,.0f} bytes open or "
        "fetched ahead at once, of which a process holds at most half of its cache: the others "
        "would be evicted between uses and fetched many times; give a cache of at least "
        f"{HELD_SHARE * wanted:,.0f} bytes, or smaller windows (window_shards, lanes)"
    )


def _first_batch(scenario: Scenario, plan: Plan, lanes: list[int]) -> float:
    """Start, then the shards of the first share of one trainer: fetched side by side, decoded.

    All trainers of a node begin at once and share its network; each decodes one shard at a time.
    """
    rates = scenario.rates
    slots = plan.rank_slots(0, scenario.gpus)
    rows = np.concatenate([span.rows for span in plan.spans(0, slots)])  # (N,)
    touched = np.unique(plan.locate(rows[rows >= 0])[0])  # (T,) shards
    size = plan.shard_rows[touched].mean() * rates.stored_bytes
    rounds = -(-len(touched) // _FETCHES)
    per_node = scenario.gpus // scenario.nodes
    side_by_side = min(_FETCHES * per_node, len(touched) * per_node)
    speed = min(rates.request_bytes, rates.node_bytes / side_by_side)
    fetch = rounds * (rates.request_seconds + size / speed)
    decode = plan.shard_rows[touched].sum() / rates.decode_rows
    return float(rates.start_seconds + fetch + decode)


def _quality(plan: Plan) -> ShuffleQuality:
    """Of as many steps over the epoch as a second allows."""
    most = max(1, min(_QUALITY_STEPS, _QUALITY_ROWS // plan.order.global_batch_rows))
    steps = np.unique(np.linspace(0, plan.steps_per_epoch - 1, most).astype(np.int64))
    return shuffle_quality(plan, [int(step) for step in steps])
