"""Which entries a process holds, against a model that adds everything up anew."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from services.shards.cache_folder import SUFFIX
from services.shards.open_entries import OpenEntries

FILES = ["a-0", "a-1", "a-2", "b-0", "b-1", "b-2"]
NAMES = [file + part + SUFFIX for file in FILES for part in ("", "-7")]
MOST = 6


@dataclass(frozen=True)
class Entry:
    """As much of a mapped one as is counted."""

    file_bytes: int


class Reader:
    """Someone who reads."""


class Model:
    """The same rules, in the plainest words."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open: list[tuple[str, int]] = []  # the last one used last
        self.kept: list[frozenset[str]] = [frozenset(), frozenset()]

    def wanted(self, name: str) -> bool:
        return any(name.startswith(file) for files in self.kept for file in files)

    def add(self, name: str, size: int) -> None:
        self.drop(name)
        self.open.append((name, size))
        self.shrink([one for one in self.open if not self.wanted(one[0])], self.limit // 8)
        self.shrink(list(self.open), self.limit // 2)
        self.open = self.open[-MOST:]

    def shrink(self, some: list[tuple[str, int]], most: int) -> None:
        while len(some) > 1 and sum(size for _, size in some) > most:
            self.open.remove(some.pop(0))

    def drop(self, name: str) -> None:
        self.open = [one for one in self.open if one[0] != name]

    def used(self, name: str) -> None:
        self.open.sort(key=lambda one: one[0] == name)  # stable

    def keep(self, reader: int, files: frozenset[str]) -> None:
        before, self.kept[reader] = self.kept[reader], files
        over = [file for file in before if not self.wanted(file)]
        self.open = [one for one in self.open if not one[0].startswith(tuple(over))]

    def drop_recent(self) -> None:
        self.open = [one for one in self.open if self.wanted(one[0])]


names = st.sampled_from(NAMES)
deeds = st.one_of(
    st.tuples(st.just("add"), names, st.integers(1, 30)),
    st.tuples(st.just("drop"), names),
    st.tuples(st.just("used"), names),
    st.tuples(st.just("keep"), st.integers(0, 1), st.frozensets(st.sampled_from(FILES))),
    st.tuples(st.just("drop_recent")),
    st.tuples(st.just("ended"), st.integers(0, 1)),
)


@given(limit=st.integers(1, 300), done=st.lists(deeds, max_size=40))
def test_the_same_entries_are_open_as_by_the_rules(limit: int, done: list[tuple]) -> None:
    ours, model = OpenEntries(limit, MOST), Model(limit)
    readers = [Reader(), Reader()]
    for deed, *what in done:
        if deed == "add":
            ours.add(what[0], Entry(what[1]))  # type: ignore[arg-type]
            model.add(*what)
        elif deed == "keep":
            ours.keep(readers[what[0]], what[1])
            model.keep(*what)
        elif deed == "ended":
            readers[what[0]] = Reader()
            model.kept[what[0]] = frozenset()
        elif deed == "used":
            if what[0] in ours:
                ours.used(what[0])
                model.used(*what)
        else:
            getattr(ours, deed)(*what)
            getattr(model, deed)(*what)
        assert list(ours) == [name for name, _ in model.open]
        assert all(name in ours for name, _ in model.open)
