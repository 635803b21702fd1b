"""One rank's steps in threads of this process: a stream without Ray, or the beginning of one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from typing import TypeVar

from services.stream.augmentation import take_threads
from services.stream.fetch import Share, fetch_shares, groups, opened
from services.stream.order import in_order
from services.stream.pool import Pool
from services.stream.request import StreamRequest

MadeT = TypeVar("MadeT")

_GROUPS_AHEAD = 2  # of steps that are read together: one is consumed while the next is made
_HEAD_AHEAD = 2  # at a time, each on as many cores as an actor: more would slow the actors' start


def in_threads(
    request: StreamRequest,
    rank: int,
    world: int,
    steps: range,
    prefetch: int,
    augment: Callable[[Share], MadeT],
    *,
    instead_of: Pool | None = None,
) -> Generator[MadeT, None, None]:
    """`augment(share)` of each step, in order, up to `prefetch` of them ahead.

    instead_of: the pool whose place is taken for a while, None for no other.
    """
    ended = threading.Event()
    read = partial(fetch_shares, look_ahead=instead_of is None, ended=ended)

    def prepare(part: Sequence[int]) -> list[MadeT]:
        return [augment(share) for share in read(request.fetched, part, rank, world)]

    def end() -> None:
        ended.set()
        opened(request.fetched).end(ended)

    if request.only_cuts:
        made = in_order(prepare, groups(request.fetched, rank, world, steps), _GROUPS_AHEAD, end)
    else:  # the recipe takes far longer than what reading several together saves
        alone = ([step] for step in steps)
        if instead_of is None:
            made = in_order(prepare, alone, prefetch, end)
        else:
            begin = partial(take_threads, instead_of.threads)
            made = in_order(prepare, alone, min(prefetch, _HEAD_AHEAD), end, begin)
    with closing(made):
        for several in made:
            yield from several
