"""Entries come into a node's folder side by side, and whole."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from services.errors import FormatError, StoreError
from services.shards import layout
from services.shards.cache_folder import EntryFolder
from services.shards.entry import CachedShard, EntryFile
from services.shards.shard_rows import ShardRows
from services.wire.seit import v1 as wire


class Held(EntryFile):
    """A file that is begun, and goes on when it is let."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def write(self, file: BinaryIO) -> None:
        file.write(b"half")
        self.begun.set()
        assert self.go_on.wait(60)
        file.seek(0)
        super().write(file)


def read(make_rows: Any, spec: wire.TokenSpec, seed: int) -> ShardRows:
    return layout.read_rows(layout.to_parquet(make_rows(40, seed), spec), spec)


def opener(spec: wire.TokenSpec) -> Callable[[Path], CachedShard]:
    return lambda path: CachedShard(path, wire.Shard(path="x", rows=40), spec)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_others_write_while_one_is_at_work_and_leave_room_for_it(
    tmp_path: Path, spec: wire.TokenSpec, make_rows: Any
) -> None:
    slow = Held(read(make_rows, spec, 0), spec)
    limit = int(slow.bytes * 2.5)
    evicted: list[str] = []

    def write(name: str, file: EntryFile) -> CachedShard:
        # Another user of the folder: what it knows of the first one's work, the files tell it.
        other = EntryFolder(tmp_path, limit)
        return other.lay_down(name, file, opener(spec), evicted.append)

    with ThreadPoolExecutor(1) as writer:
        first = writer.submit(write, "a.rows", slow)
        try:
            assert slow.begun.wait(60)
            for seed, name in enumerate(["b.rows", "c.rows"], 1):
                entry = write(name, EntryFile(read(make_rows, spec, seed), spec))
                ids, _ = entry.take(np.arange(40))
                np.testing.assert_array_equal(ids, make_rows(40, seed).ids)
                del entry
            # Two and the unfinished one are more than the limit: the first of them had to go.
            assert evicted == ["b.rows"]
            (unfinished,) = names(tmp_path) - {"c.rows"}
            assert (tmp_path / unfinished).stat().st_size == slow.bytes
        finally:
            slow.go_on.set()
        found = first.result(60)
    assert names(tmp_path) == {"a.rows", "c.rows"}
    assert found.check_payload()
    np.testing.assert_array_equal(found.take(np.arange(40))[0], make_rows(40, 0).ids)


def test_content_that_turns_out_damaged_leaves_nothing(
    tmp_path: Path, spec: wire.TokenSpec, make_rows: Any
) -> None:
    rows = read(make_rows, spec, 0)
    offsets = rows.columns.offsets.copy()
    offsets[-2] += 1
    damaged = replace(rows, name="ds/x.parquet", columns=replace(rows.columns, offsets=offsets))
    folder = EntryFolder(tmp_path, 1 << 30)
    with pytest.raises(FormatError, match=r"ds/x\.parquet: .* damaged"):
        folder.lay_down("a.rows", EntryFile(damaged, spec), opener(spec), print)
    assert names(tmp_path) == set()


def test_a_process_that_was_forked_meanwhile_holds_nobody_up(tmp_path: Path) -> None:
    """As a trainer's data workers are: it has copies of all that was open."""
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path.cwd())!r})
from pathlib import Path
from services.shards.cache_folder import EntryFolder
folder = EntryFolder(Path({str(tmp_path)!r}), 1 << 30)
until, mine = os.pipe()
with folder.lock("write"):
    if not os.fork():
        os.close(mine)
        os.read(until, 1)  # until the other process is gone, however it ends
        os._exit(0)
signal.alarm(30)  # ends this process if it has to wait
with folder.lock("write"):
    print("mine")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "mine"), done.stderr


def lay_down(folder: EntryFolder, name: str, file: EntryFile, spec: wire.TokenSpec) -> list[str]:
    """Names of the entries that had to go for it."""
    evicted: list[str] = []
    folder.lay_down(name, file, opener(spec), evicted.append)
    return evicted


def test_a_folder_is_not_looked_through_for_each_entry(
    tmp_path: Path, spec: wire.TokenSpec, make_rows: Any
) -> None:
    """With thousands in it, that took ten times as long as to fetch the next one."""
    looked: list[str] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.scandir", "os.listdir") and str(arguments[0]) == str(tmp_path):
            looked.append(event)

    file = EntryFile(read(make_rows, spec, 0), spec)
    users = [EntryFolder(tmp_path, 100 * file.bytes) for _ in range(2)]
    sys.addaudithook(note)  # stays, and says nothing of other folders
    for number in range(100):
        assert lay_down(users[number % 2], f"{number}.rows", file, spec) == []
    assert len(looked) == len(users)  # each once: the dead may have left something
    assert len(names(tmp_path)) == 100


def test_a_full_folder_is_looked_through_once_for_several_entries(
    tmp_path: Path, spec: wire.TokenSpec, make_rows: Any
) -> None:
    looked: list[str] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.scandir" and str(arguments[0]) == str(tmp_path):
            looked.append(event)

    file = EntryFile(read(make_rows, spec, 0), spec)
    users = [EntryFolder(tmp_path, 200 * file.bytes) for _ in range(2)]
    for number in range(200):
        assert lay_down(users[number % 2], f"{number}.rows", file, spec) == []
    held = opener(spec)(tmp_path / "199.rows")  # the one that would go first
    sys.addaudithook(note)  # stays, and says nothing of other folders
    gone = []
    for number in range(80):
        gone.append(len(lay_down(users[number % 2], f"new {number}.rows", file, spec)))
        assert 197 <= len([one for one in os.listdir(tmp_path) if one != "locks"]) <= 200
    assert gone == [4, 0, 0, 0] * 20  # one has to, and three are less than a 64th of the limit
    assert len(looked) == 20
    assert (tmp_path / "199.rows").exists()
    assert held.check_payload()


@pytest.mark.parametrize("gone", ["entries", "account"])
def test_what_others_take_away_neither_fills_the_folder_nor_counts_as_there(
    tmp_path: Path, spec: wire.TokenSpec, make_rows: Any, gone: str
) -> None:
    file = EntryFile(read(make_rows, spec, 0), spec)
    users = [EntryFolder(tmp_path, 4 * file.bytes) for _ in range(2)]
    for number in range(3):
        assert lay_down(users[number % 2], f"{number}.rows", file, spec) == []
    if gone == "entries":
        for number in range(3):
            (tmp_path / f"{number}.rows").unlink()
        expected = [0, 0, 0, 0, 1, 1]
    else:
        shutil.rmtree(tmp_path / "locks")
        expected = [0, 1, 1, 1, 1, 1]
    for number, evicted in enumerate(expected):
        assert len(lay_down(users[number % 2], f"new {number}.rows", file, spec)) == evicted
        assert len(names(tmp_path)) <= 4


class Disk:
    """A disk that takes so many bytes: what the system says of a full one, without mounting any."""

    def __init__(self, folder: Path, capacity: int) -> None:
        self.folder, self.capacity = folder, capacity

    def file(self, rows: ShardRows, spec: wire.TokenSpec) -> EntryFile:
        disk = self

        class OnIt(EntryFile):
            def write(self, file: BinaryIO) -> None:
                taken = sum(path.stat().st_size for path in disk.folder.glob("*.rows"))
                if taken + self.bytes > disk.capacity:
                    file.write(b"half")
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                super().write(file)

        return OnIt(rows, spec)


def test_a_disk_smaller_than_the_limit_holds_what_it_can(
    tmp_path: Path, spec: wire.TokenSpec, make_rows: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [read(make_rows, spec, seed) for seed in range(8)]
    size = EntryFile(rows[0], spec).bytes
    disk = Disk(tmp_path, 3 * size + size // 2)
    folder = EntryFolder(tmp_path, 100 * size)
    evicted: list[str] = []
    for number, one in enumerate(rows):
        name = f"d-{number}.rows"
        entry = folder.lay_down(name, disk.file(one, spec), opener(spec), evicted.append)
        assert (entry.take(np.arange(40))[0].reshape(40, -1) == one.ids()).all()
        del entry
        assert name in names(tmp_path)
        assert len([each for each in names(tmp_path) if each.endswith(".rows")]) == min(
            number + 1, 3
        )
    assert len(evicted) == len(set(evicted)) == 5
    assert not [each for each in names(tmp_path) if each.endswith(".tmp")]
    assert caplog.text.count("its disk is full") == 1
    assert f"with {3 * size} bytes of at most {100 * size}" in caplog.text


def test_a_disk_that_others_filled_ends_the_wish_with_what_to_do(
    tmp_path: Path, spec: wire.TokenSpec, make_rows: Any
) -> None:
    rows = read(make_rows, spec, 0)
    size = EntryFile(rows, spec).bytes
    folder = EntryFolder(tmp_path, 100 * size)
    with pytest.raises(StoreError, match=f"No space left.*needs {size} bytes more: free space"):
        folder.lay_down("d-0.rows", Disk(tmp_path, size - 1).file(rows, spec), opener(spec), print)
    assert not [each for each in names(tmp_path) if each != "locks"]
