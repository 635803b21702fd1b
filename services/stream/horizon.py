"""Which shards a process needs around a step, for all the ranks that it reads for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from services.plan import epoch
from services.plan.epoch import RowPlan
from services.types import IntArray

_Reader: TypeAlias = tuple[object, range]  # (a stream, the slots of one of its ranks)


@dataclass(frozen=True)
class Needs:
    """Shards of the plan, each (n,) and sorted. later: soon to be fetched. all: `later`, and those
    that are open now or until then.
    """

    later: IntArray
    all: IntArray


class Horizon:
    """Follows ranks along the plan, from where they are to `epoch.LOOK_AHEAD_ROWS` further on.

    It looks four times on that way, which misses no window unless it is shorter than that.
    """

    def __init__(self, plan: RowPlan, last_step: int | None) -> None:
        """last_step: of the plan; None for one without end."""
        self._plan, self._last = plan, last_step
        self._distance = max(1, epoch.LOOK_AHEAD_ROWS // plan.order.global_batch_rows)
        self._stride = max(1, self._distance // 4)
        self._due: dict[_Reader, dict[int, IntArray]] = {}  # by reader and step

    def forget(self, stream: object) -> None:
        """Nothing is needed by this stream any more."""
        for reader in [reader for reader in self._due if reader[0] is stream]:
            del self._due[reader]

    def at(self, step: int, slots: range, stream: object = None) -> Needs | None:
        """What is needed once a rank has come to a step; None if that was asked not long ago.

        slots: those of the rank, as `RowPlan.rank_slots` gives them. stream: of several at a time,
        each somewhere else; None for the one whose ranks this process reads for as they come.
        """
        now = step // self._stride * self._stride
        later = now + self._distance
        reader = stream, slots
        due = self._due.setdefault(reader, {})
        if later in due:
            return None
        # Kept a stride longer than need be: another thread may be a few steps behind.
        for gone in [at for at in due if not now - self._stride <= at <= later]:
            del due[gone]
        for at in (now, later):
            if at not in due:
                last = at if self._last is None else min(at, self._last)
                due[at] = self._plan.open_shards(last, slots)
        # Its ranks go along together: who is elsewhere has ended, or has another share by now.
        far = 2 * self._distance
        for other, its in list(self._due.items()):
            if other[0] is stream and abs(max(its) - later) > far:
                del self._due[other]
        every = [shards for due in self._due.values() for shards in due.values()]
        return Needs(due[later], np.unique(np.concatenate(every)))
