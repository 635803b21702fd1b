"""Orders of shards that were searched for, as many as there is room for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Container

from services.stats.facts import Facts
from services.stats.listing import ShardQuery, shard_order
from services.types import IntArray

_ENTRY_BYTES = 1000
"""Of an order and its question, besides positions and texts: an empty one takes room too."""
_CHARACTER_BYTES = 4


class Orders:
    """The orders used last. Safe to share by threads.

    limit_bytes: of all of them; beyond it those used least recently go, though never the one in
    use.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._lock = threading.Lock()  # for bookkeeping only, never held while shards are ordered
        self._orders: OrderedDict[tuple[str, str, ShardQuery], IntArray] = OrderedDict()
        self.bytes = 0

    def get(self, facts: Facts, query: ShardQuery) -> IntArray:
        """(n,) int64, as `shard_order`, whose errors it raises."""
        key = (facts.about.dataset, facts.digest, query)
        with self._lock:
            if key in self._orders:
                self._orders.move_to_end(key)
                return self._orders[key]
        order = shard_order(facts, query)
        with self._lock:
            if key not in self._orders:
                self._orders[key] = order
                self.bytes += _size(query, order)
            while self.bytes > self._limit and len(self._orders) > 1:
                self._drop(next(iter(self._orders)))
        return order

    def forget_others(self, names: Container[str]) -> None:
        """Drop the orders of datasets that do not stand any more."""
        with self._lock:
            for key in [key for key in self._orders if key[0] not in names]:
                self._drop(key)

    def _drop(self, key: tuple[str, str, ShardQuery]) -> None:
        self.bytes -= _size(key[2], self._orders.pop(key))


def _size(query: ShardQuery, order: IntArray) -> int:
    characters = len(query.split or "") + len(query.contains) + len(query.column)
    return order.nbytes + _CHARACTER_BYTES * characters + _ENTRY_BYTES
