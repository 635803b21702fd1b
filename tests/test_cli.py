"""`seit` as a user runs it: what it says, where, and how it ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from services.cli import listening
from services.shards.manifest import commit
from services.shards.store import Store, open_store
from tests.seit_command import Seit
from tests.small_datasets import write_dataset


@pytest.fixture
def root(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def age(root: Store, days: float) -> None:
    """Make all files below the root older."""
    for entry in root.scan():
        path = root.local_path(entry.path)
        assert path is not None
        os.utime(path, (entry.modified - days * 86400,) * 2)


def test_help_names_every_command(seit: Seit) -> None:
    shown = seit("--help")
    assert shown.code == 0
    for command in (
        "ingest",
        "inspect",
        "verify",
        "diff",
        "stats",
        "streams",
        "serve",
        "gc",
        "demo",
    ):
        assert f"• {command} " in shown.out


@pytest.mark.parametrize(
    "command",
    [
        "inspect",
        "verify",
        "diff",
        "stats",
        "streams",
        "serve",
        "gc",
        "import-release",
        "export-release",
    ],
)
def test_each_command_has_help(seit: Seit, command: str) -> None:
    shown = seit(command, "--help")
    assert shown.code == 0
    assert f"usage: seit {command}" in shown.out


def test_no_command_or_an_unknown_one_is_a_usage_error(seit: Seit) -> None:
    assert seit().code == 2
    assert seit("fetch").code == 2
    assert seit("inspect").code == 2


def test_inspect_tells_in_words_and_a_table(seit: Seit, root: Store) -> None:
    loaded = write_dataset(root)
    shown = seit("inspect", root.url, "digits")
    assert shown.code == 0
    for words in (
        f"digits version 1, committed {loaded.manifest.created}",
        loaded.digest,
        "17 images of 32x48 pixels, each as 4x6 tokens of 16 codes",
        "3 classes: zero, one, [red]two.",
        "a/broken.png",
        "validation",
        loaded.manifest.assets[0].path,
    ):
        assert words in shown.out
    assert "\x1b" not in shown.out


def test_inspect_shows_any_version(seit: Seit, root: Store) -> None:
    write_dataset(root, seed=5)
    write_dataset(root, seed=6)
    assert "It says: seed 6" in seit("inspect", root.url, "digits").out
    assert "It says: seed 5" in seit("inspect", root.url, "digits", "--version", "1").out


@pytest.mark.parametrize(
    ("dataset", "words"),
    [("none", "there are: digits"), ("../digits", "not valid"), ("..", "not valid")],
)
@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_wrong_dataset_ends_with_2(
    seit: Seit, root: Store, command: str, dataset: str, words: str
) -> None:
    write_dataset(root)
    shown = seit(command, root.url, dataset)
    assert (shown.code, shown.out) == (2, "")
    assert words in shown.err


@pytest.mark.parametrize("command", ["inspect", "verify", "gc"])
def test_a_missing_folder_ends_with_2(seit: Seit, tmp_path: Path, command: str) -> None:
    shown = seit(command, str(tmp_path / "none"), "digits")
    assert shown.code == 2
    assert "there is no folder" in shown.err
    assert not (tmp_path / "none").exists()


def test_a_newer_manifest_ends_with_2(seit: Seit, root: Store) -> None:
    write_dataset(root)
    path = "digits/versions/00000001.json"
    root.write(path, json.dumps(json.loads(root.read(path)) | {"format": 99}).encode())
    shown = seit("inspect", root.url, "digits")
    assert shown.code == 2
    assert "found format 99, this program reads" in shown.err


def test_verify_passes_what_is_whole(seit: Seit, root: Store) -> None:
    write_dataset(root)
    shown = seit("verify", root.url, "digits")
    assert shown.code == 0
    assert "all as they were written" in shown.out


def test_verify_of_rows_finds_what_the_writer_miscounted(seit: Seit, root: Store) -> None:
    manifest = write_dataset(root).manifest
    assert "every row and count right" in seit("verify", root.url, "digits", "--rows").out
    manifest.splits[0].shards[0].source_bytes += 1
    commit(root, manifest)
    assert seit("verify", root.url, "digits").code == 0
    shown = seit("verify", root.url, "digits", "--rows")
    assert shown.code == 1
    assert "source bytes add up to" in shown.err


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_verify_names_the_first_bad_shard(seit: Seit, root: Store, damage: str) -> None:
    shards = write_dataset(root).manifest.splits[0].shards
    bad = f"digits/{shards[1].path}"
    data = bytearray(root.read(bad))
    if damage == "flipped":
        data[len(data) // 2] ^= 1
        root.write(bad, bytes(data))
    elif damage == "truncated":
        root.write(bad, bytes(data[:-1]))
    else:
        root.delete(bad)
    shown = seit("verify", root.url, "digits")
    assert shown.code == 1
    assert f"{shards[1].path} is bad" in shown.err
    assert shards[2].path not in shown.err


def test_gc_removes_only_what_no_version_names(seit: Seit, root: Store) -> None:
    write_dataset(root, seed=1)
    write_dataset(root, seed=2)
    whole = set(root.list())
    root.write("digits/shards/train-0123456789abcdef.parquet", b"of a killed writer")
    root.write("digits/README.md", b"a user's own note")
    assert "nothing to collect" in seit("gc", root.url, "digits", "--delete").out  # too young
    age(root, days=2)
    listed = seit("gc", root.url, "digits")
    assert "train-0123456789abcdef.parquet" in listed.out
    assert "1 files, 18 bytes, found; nothing was removed" in listed.out
    assert set(root.list()) == whole | {
        "digits/README.md",
        "digits/shards/train-0123456789abcdef.parquet",
    }
    assert "removed" in seit("gc", root.url, "digits", "--delete").out
    assert set(root.list()) == whole | {"digits/README.md"}
    assert seit("verify", root.url, "digits").code == 0


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "file:///etc"])
def test_stats_of_no_service_ends_with_2(seit: Seit, url: str) -> None:
    shown = seit("stats", url)
    assert (shown.code, shown.out) == (2, "")
    assert url in shown.err


@pytest.mark.parametrize("port", [-1, 65536, 70000, 1 << 40])
def test_a_port_that_cannot_be_is_refused(seit: Seit, root: Store, port: int) -> None:
    shown = seit("serve", root.url, "--port", str(port))
    assert (shown.code, shown.out) == (2, "")
    assert f"port {port} is outside 0..65535" in shown.err


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1", "no.such.host.invalid", "a" * 300])
def test_a_place_where_nothing_can_listen_is_refused(seit: Seit, root: Store, host: str) -> None:
    """A port in use, or an address that is not this machine's."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        shown = seit("serve", root.url, "--host", host, "--port", str(port))
    assert (shown.code, shown.out) == (2, "")
    assert f"nothing can listen at port {port} of '{host}'" in shown.err


def test_a_free_port_is_found_before_anything_starts() -> None:
    sockets = listening("127.0.0.1", 0)
    port = sockets[0].getsockname()[1]
    assert port > 0
    for one in sockets:
        one.close()
    (again,) = listening("127.0.0.1", port)
    assert again.getsockname() == ("127.0.0.1", port)
    again.close()


def test_looking_loads_neither_ray_nor_torch(root: Store) -> None:
    write_dataset(root)
    program = (
        "import sys\nfrom services.cli import main\n"
        "try:\n    main(['inspect', sys.argv[1], 'digits'])\n"
        "finally:\n    assert not {'ray', 'torch', 'fastapi'} & sys.modules.keys(), 'heavy'"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, root.url], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_command_that_is_passed_on_gets_its_arguments(
    seit: Seit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`seit demo` is a program of the trainers: here only the way to it, as it takes minutes."""
    started: list[tuple[str, list[str]]] = []

    def become(path: str, command: list[str]) -> None:
        started.append((path, command))
        raise SystemExit(3)

    monkeypatch.setattr(os, "execv", become)
    assert seit("demo", "--images", "x", "--help").code == 3
    command = [sys.executable, "-m", "trainers.demo", "--images", "x", "--help"]
    assert started == [(sys.executable, command)]
