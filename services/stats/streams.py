"""What flows, at hand: the streams of all runs below a few folders.

A run's ranks write OUT/streams/rank-R.json every few seconds. Folders are listed once in
`fresh_seconds`, and a file is read again when it changed; requests are answered from memory.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from services.errors import FormatError, InvalidInputError, NotFoundError, SeitError
from services.shards.retry import RetryPolicy
from services.shards.store import Entry, LocalStore, Store, open_store, refuse_missing
from services.stats.flows import (
    RUNNING,
    STALLED,
    STATES,
    UNREADABLE,
    Word,
    current,
    parse_identity,
    parse_word,
    rfc3339,
    summarize_words,
    without_ranks,
)
from services.stats.fresh import Fresh
from services.stats.standing import folders_of
from services.wire.seit import v1 as wire

_STREAMS, _RUN = "streams", "run.json"
_RANK_FILE = re.compile(rf"{_STREAMS}/rank-(0|[1-9][0-9]{{0,5}})\.json")
RANK_FILES = f"{_STREAMS}/rank-R.json"
"""What stands in a run's folder, in words."""
_NAME_CHARACTERS = 128
_NUMBER = re.compile(r"[1-9][0-9]{0,5}")  # of the folder that a run of a taken name is in
_MAX_FILE_BYTES = 1 << 20
_LISTINGS = 16  # folders listed at the same time
_RETRY = RetryPolicy(attempts=3)  # who asks would rather hear soon that the storage is out
_SETTLED_SECONDS = 10.0
"""A file that changed later than this before it was read may have changed again since, within the
same tick of the storage's clock and to the same size: it is read again."""
_SAME_START_SECONDS = 60.0  # clocks drift: a stream does not move in the list for less


@dataclass(frozen=True)
class _File:
    """A file as it was found, and when. found: a word, or what is wrong with it."""

    entry: Entry
    read_at: float
    found: Word | str

    def holds(self, entry: Entry) -> bool:
        return self.entry == entry and self.read_at - entry.modified > _SETTLED_SECONDS


@dataclass
class _Run:
    """A run's folder. entries: its ranks' files by rank, of the last listing."""

    name: str
    store: Store
    within: Path | None  # the configured folder, where it is on this machine
    entries: Mapping[int, Entry] = field(default_factory=dict)
    files: dict[int, _File] = field(default_factory=dict)
    kind: str = ""
    recipe: str = ""
    complaint: str = ""  # about run.json
    started: float = -math.inf
    settled: wire.StreamInfo | None = None  # of a run that ended, until a file changes

    @property
    def changed(self) -> float:
        return max((entry.modified for entry in self.entries.values()), default=0.0)

    @property
    def bytes(self) -> int:
        """That reading it would keep in memory; what is too large is not kept."""
        sizes = (entry.bytes for entry in self.entries.values())
        return sum(size for size in sizes if size <= _MAX_FILE_BYTES)


@dataclass(frozen=True)
class _Snapshot:
    """All streams at one time: newest first, with their keys in the same order, and by name."""

    keys: list[tuple[int, str]] = field(default_factory=list)
    lines: list[wire.StreamInfo] = field(default_factory=list)
    by_name: Mapping[str, wire.StreamInfo] = field(default_factory=dict)


class Streams:
    """Streams of the runs in `folders`: each of them, and each folder directly below.

    A folder is a run if ranks' files stand in it, and if its name is one that `check_run_name`
    passes. Where several of `folders` hold one of a name, those of later ones are called NAME~N.

    fresh_seconds: longest age of a listing that answers are made from.
    bytes_limit: bytes of ranks' files whose content stays in memory; the runs that changed
    longest ago are not read beyond it, and say so.
    clock: seconds, monotonic. now: Unix seconds.
    """

    def __init__(
        self,
        folders: Sequence[Store],
        *,
        fresh_seconds: float,
        bytes_limit: int,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folders, self._limit = list(folders), bytes_limit
        self._now = now
        self._runs: dict[str, _Run] = {}
        self._seen = Fresh(lambda waited: self._look(), fresh_seconds, clock)

    def all(self) -> list[wire.StreamInfo]:
        """Every stream with its ranks, newest first. Raises: StoreError."""
        snapshot = self._seen.get()
        return [snapshot.by_name[name] for _, name in snapshot.keys]

    def stream(self, name: str) -> wire.StreamInfo:
        """One run's stream with its ranks.

        Raises: InvalidInputError for a name that no run may have, NotFoundError, StoreError.
        """
        found = self._seen.get().by_name.get(check_run_name(name))
        if found is None:
            raise NotFoundError(
                f"there is no run {name!r} with a stream; the list of streams names those that"
                " there are"
            )
        return found

    def page(self, state: str | None, after: str, limit: int) -> wire.StreamList:
        """Up to `limit` streams, newest first, behind the cursor `after`; of one state, or all."""
        if state is not None and state not in STATES:
            raise InvalidInputError(f"state {state!r} is none of {', '.join(STATES)}")
        start = _parse_cursor(after) if after else None
        snapshot = self._seen.get()
        first = bisect_right(snapshot.keys, start) if start else 0
        lines = snapshot.lines
        places = (at for at in range(first, len(lines)) if state in (None, lines[at].state))
        found = list(islice(places, limit + 1))
        return wire.StreamList(
            streams=[lines[at] for at in found[:limit]],
            next=_cursor(snapshot.keys[found[limit - 1]]) if len(found) > limit else "",
        )

    def stamp(self) -> int | None:
        """Changes with what is known; None where the folders would have to be looked at."""
        return self._seen.stamp()

    def _look(self) -> _Snapshot:
        with ThreadPoolExecutor(_LISTINGS, thread_name_prefix="seit-streams") as pool:
            found = list(pool.map(_list_ranks, self._candidates()))
            self._runs = {run.name: run for run in found if run.entries}
            read: list[_Run] = []
            held = 0
            for run in sorted(self._runs.values(), key=lambda run: -run.changed):
                if held + run.bytes <= self._limit:
                    held += run.bytes
                    read.append(run)
                else:
                    run.files, run.settled = {}, None
            for _ in pool.map(lambda run: _read_ranks(run, self._now()), read):
                pass  # whatever a reading raises, it raises here
        now = self._now()
        infos = {name: self._info(run, now) for name, run in self._runs.items()}
        keys = sorted((-int(self._runs[name].started), name) for name in infos)
        return _Snapshot(keys, [without_ranks(infos[name]) for _, name in keys], infos)

    def _candidates(self) -> Iterable[_Run]:
        """Folders that may be runs, each under a name of its own, with what is known of it."""
        taken: set[str] = set()
        for number, root in enumerate(self._folders, 1):
            within = Path(os.path.realpath(root.url)) if isinstance(root, LocalStore) else None
            places = [(root.url.rstrip("/").rpartition("/")[2], root)]
            below = folders_of(root, "the runs")
            places += [(name, root.child(name)) for name in below if _is_folder(name)]
            for folder, store in places:
                name = folder if folder not in taken else f"{folder}~{number}"
                if name in taken or not _is_folder(folder):
                    continue
                taken.add(name)
                known = self._runs.get(name)
                if known is not None and known.store.url == store.url:
                    yield known
                else:
                    yield _Run(name, store, within)

    def _info(self, run: _Run, now: float) -> wire.StreamInfo:
        if run.settled is not None:
            return run.settled
        words = current([f.found for f in run.files.values() if isinstance(f.found, Word)])
        if not run.files:
            problems = [
                f"not read: files of {self._limit:,} bytes stay in memory, of the runs that changed"
                " last; SEIT_STATS_STREAM_BYTES allows more"
            ]
        else:
            workers = max((word.flow.workers for word in words), default=2**32)
            problems = [
                f"{file.entry.path}: {file.found}"
                for rank, file in sorted(run.files.items())
                if isinstance(file.found, str) and rank < workers
            ]
        if words:
            info = summarize_words(run.name, words, now)
            started = min(word.updated - word.flow.seconds for word in words)
        else:
            info = wire.StreamInfo(name=run.name, updated=rfc3339(run.changed))
            started = run.changed
        started = min(max(started, 0.0), 1e11)
        if abs(started - run.started) > _SAME_START_SECONDS:
            run.started = started
        info.started = rfc3339(run.started)
        info.kind, info.recipe = run.kind, run.recipe
        info.reason = _in_words(problems) or run.complaint
        if problems:
            info.state, info.eta_seconds = UNREADABLE, None
        elif info.state not in (RUNNING, STALLED):
            run.settled = info
        return info


def open_runs(urls: Sequence[str]) -> list[Store]:
    """The folders at `urls`. Raises: InvalidInputError; NotFoundError for a local one that is not
    there: a typing error rather than an empty one."""
    stores = [open_store(url, retry=_RETRY) for url in urls]
    for store in stores:
        refuse_missing(store, "a run, or runs")
    return stores


def _is_folder(name: str) -> bool:
    """Whether a folder may be a run's. A name is looked up, never made a path of: what people call
    their folders is good, in any script and with spaces."""
    sound = 0 < len(name) <= _NAME_CHARACTERS and name.isprintable()
    return sound and not name.startswith(".") and not set(name) & set("/\\~")


def _is_run(name: str) -> bool:
    folder, several, number = name.partition("~")
    return _is_folder(folder) and (not several or _NUMBER.fullmatch(number) is not None)


def listed(folders: Sequence[Store], state: str | None = None) -> Iterator[wire.StreamInfo]:
    """Streams of the runs in `folders` as they are now, newest first and without their ranks."""
    streams = Streams(folders, fresh_seconds=math.inf, bytes_limit=sys.maxsize)
    yield from streams.page(state, "", sys.maxsize - 1).streams


def check_run_name(name: str) -> str:
    """The name itself if it may be one of a run; InvalidInputError otherwise."""
    if not _is_run(name):
        raise InvalidInputError(
            f"run name {name!r} is not valid: 1 to {_NAME_CHARACTERS} printable characters without"
            " / \\ ~ and with no . in front, and ~N behind it where several folders hold one of"
            " that name; folders of other names are not shown: rename them"
        )
    return name


def _list_ranks(run: _Run) -> _Run:
    found = ((_RANK_FILE.fullmatch(one.path), one) for one in run.store.scan(_STREAMS))
    run.entries = {int(match[1]): entry for match, entry in found if match}
    return run


def _read_ranks(run: _Run, now: float) -> None:
    """Read what changed since; the configuration as well, as a restart may have changed it."""
    held = {
        rank: file
        for rank, file in run.files.items()
        if rank in run.entries and file.holds(run.entries[rank])
    }
    for rank in run.entries.keys() - held.keys():
        held[rank] = _File(run.entries[rank], now, _read_word(run, rank))
    if held != run.files:
        _read_identity(run)
        run.settled = None
    run.files = held


def _read_word(run: _Run, rank: int) -> Word | str:
    try:
        return parse_word(_read(run, run.entries[rank].path), rank)
    except (SeitError, OSError) as error:
        return _told(run, error)


def _read_identity(run: _Run) -> None:
    run.kind = run.recipe = run.complaint = ""
    try:
        run.kind, run.recipe = parse_identity(_read(run, _RUN))
    except NotFoundError:
        run.complaint = f"there is no {_RUN}"
    except (SeitError, OSError) as error:
        run.complaint = f"{_RUN}: {_told(run, error)}"


def _told(run: _Run, error: Exception) -> str:
    """What is wrong, without where on the operator's machines the folder lies."""
    return str(error).replace(run.store.url, "RUN")


def _read(run: _Run, path: str) -> bytes:
    """A small regular file that lies in the configured folder, links followed."""
    local = run.store.local_path(path)
    if local is not None and run.within is not None:
        real = Path(os.path.realpath(local))
        if not real.is_relative_to(run.within):
            raise FormatError("a link leads out of the folder that this service may read")
        if real.exists() and not real.is_file():
            raise FormatError("this is not a regular file")
    data = run.store.read_range(path, 0, _MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise FormatError(f"it has more than {_MAX_FILE_BYTES:,} bytes")
    return data


def _cursor(key: tuple[int, str]) -> str:
    return f"{-key[0]}.{key[1]}"


def _parse_cursor(text: str) -> tuple[int, str]:
    started, dot, name = text.partition(".")
    sound = started.isascii() and started.isdigit() and len(started) < 19
    if not (dot and sound and _is_run(name)):
        raise InvalidInputError(
            f"cursor {text!r} is not one that this service gave out; start again without a cursor"
        )
    return -int(started), name


def _in_words(problems: Sequence[str], most: int = 3) -> str:
    rest = len(problems) - most
    return "; ".join(problems[:most]) + (f"; and {rest:,} more" if rest > 0 else "")
