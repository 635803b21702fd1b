from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import InvalidInputError, NotFoundError, SeitError, StoreError
from services.shards.orphans import find_orphans
from services.shards.retry import RetryPolicy
from services.shards.store import Store, check_path, open_store, read_url


def test_write_read_list_delete(store: Store) -> None:
    store.write("a/one.bin", b"0123456789")
    store.write("a/b/two.bin", b"")
    store.write("a/one.bin", b"abcdefghij")
    assert store.read("a/one.bin") == b"abcdefghij"
    assert store.read_range("a/one.bin", 7, 2) == b"hi"
    assert store.read_range("a/one.bin", 8, 5) == b"ij"
    assert store.read_range("a/one.bin", 50, 5) == b""
    assert store.size("a/one.bin") == 10
    assert store.exists("a/one.bin")
    assert not store.exists("a/none.bin")
    assert not store.exists("a")
    assert store.list() == ["a/b/two.bin", "a/one.bin"]
    assert store.list("a/b") == ["a/b/two.bin"]
    assert store.list("nothing") == []
    assert store.folders() == ["a"]
    assert store.child("a").folders() == ["b"]
    assert store.child("nothing").folders() == []
    assert store.child("a").read("one.bin") == b"abcdefghij"
    entries = {entry.path: entry for entry in store.scan("a")}
    assert entries["a/one.bin"].bytes == 10
    assert abs(entries["a/one.bin"].modified - time.time()) < 60
    store.delete("a/one.bin")
    store.delete("a/one.bin")
    assert store.list() == ["a/b/two.bin"]
    assert store.retries == 0


def test_create_is_exclusive(store: Store) -> None:
    store.check_exclusive()
    assert store.create("v/1", b"first")
    assert not store.create("v/1", b"second")
    assert store.read("v/1") == b"first"
    assert store.list() == ["v/1"]


def test_one_of_many_creators_wins(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.create("v/1", b"%d" % n), range(24)))
    assert won.count(True) == 1
    assert store.read("v/1") == b"%d" % won.index(True)
    assert store.list() == ["v/1"]


def test_missing_files_are_not_found_and_not_retried(store: Store) -> None:
    for ask in (store.read, store.size, lambda path: store.read_range(path, 0, 1)):
        with pytest.raises(NotFoundError, match="gone"):
            ask("gone")
    assert store.retries == 0


def test_a_folder_in_place_of_a_file_is_named_as_that(tmp_path: Path) -> None:
    """The folder of a run, where its tokenizer.safetensors was asked for."""
    (tmp_path / "run").mkdir()
    with pytest.raises(StoreError, match=r"run: is a folder.*file in it"):
        read_url(str(tmp_path / "run"))


def test_a_store_travels_by_pickle(store: Store) -> None:
    store.write("x", b"1")
    again = pickle.loads(pickle.dumps(store))
    assert (again.url, again.read("x"), again.child("y").url) == (
        store.url,
        b"1",
        store.url + "/y",
    )


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/passwd", "a\\..\\x", "a\0b", "", ".", "a//b", "a/", "a\nb"]
)
def test_paths_that_leave_the_folder_are_refused(root: Store, path: str) -> None:
    for ask in (root.read, root.exists, root.delete, root.child, root.local_path):
        with pytest.raises(InvalidInputError, match="relative path"):
            ask(path)
    with pytest.raises(InvalidInputError):
        root.write(path, b"")
    with pytest.raises(InvalidInputError):
        root.create(path, b"")


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="./\\\0ab ~\n", max_size=12))
def test_an_accepted_path_stays_inside(path: str) -> None:
    try:
        check_path(path)
    except InvalidInputError:
        return
    full = os.path.normpath(os.path.join("/root/x", path))
    assert full == "/root/x/" + path


@pytest.mark.parametrize("url", ["ftp://host/x", "s3://", "s3:///x", "file://", ""])
def test_urls_that_name_no_store_are_refused(url: str) -> None:
    with pytest.raises(InvalidInputError):
        open_store(url)


def test_options_of_a_local_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="endpoint_url"):
        open_store(str(tmp_path), endpoint_url="http://127.0.0.1:1")


def test_file_urls_and_plain_paths_are_the_same(tmp_path: Path) -> None:
    open_store(f"file://{tmp_path}/a%20b").write("x", b"1")
    plain = open_store(str(tmp_path / "a b"))
    assert plain.read("x") == b"1"
    assert plain.local_path("x") == tmp_path / "a b" / "x"


@pytest.mark.parametrize("name", ["a#b", "a?b", "a%23b"])
def test_a_file_url_names_its_folder_to_the_last_sign(tmp_path: Path, name: str) -> None:
    open_store(f"file://localhost{tmp_path}/{name}").write("x", b"1")
    assert [folder.name for folder in tmp_path.iterdir()] == [unquote(name)]


@pytest.mark.parametrize("url", ["file://data/tokens", "file://nas/data", "file://data"])
def test_a_file_url_of_another_machine_is_refused(url: str) -> None:
    """Most often it is a relative path, whose first folder would be lost."""
    with pytest.raises(InvalidInputError, match=r"names the machine '\w+'.*file:///"):
        open_store(url)


def test_a_file_in_place_of_a_folder_is_an_error(root: Store) -> None:
    root.write("a", b"")
    for put in (root.write, root.create):
        with pytest.raises(StoreError):
            put("a/b", b"1")


def test_what_cannot_be_looked_at_is_an_error_and_not_absent(root: Store, tmp_path: Path) -> None:
    root.write("a/one.bin", b"")
    (tmp_path / "root/loop").symlink_to("loop")  # too many levels of symbolic links
    for ask in (root.list, root.exists):
        with pytest.raises(StoreError, match="loop"):
            ask("loop")
    with pytest.raises(StoreError, match="loop"):
        root.child("loop").folders()
    assert root.list("a") == ["a/one.bin"]
    assert root.list("a/one.bin") == root.list("none") == []
    assert not root.exists("a/one.bin/below")


def test_transient_faults_are_retried_and_counted(faulty_s3, s3_store: Store) -> None:
    data = os.urandom(50_000)
    faulty_s3.faults = [500, 503, "reset"]
    s3_store.write("x", data)
    assert faulty_s3.faults == []
    assert s3_store.retries >= 2  # aiohttp may have mended the reset by itself
    before = s3_store.retries
    faulty_s3.faults = ["truncate", 500, 503]
    assert s3_store.child("y/z").url.endswith("/y/z")
    assert s3_store.read("x") == data
    assert s3_store.retries == before + 3
    assert faulty_s3.faults == []


def test_a_refusal_is_not_retried(faulty_s3, s3_store: Store) -> None:
    faulty_s3.faults = [403]
    with pytest.raises(StoreError, match="403"):
        s3_store.read("x")
    assert (s3_store.retries, faulty_s3.requests) == (0, 1)


def test_attempts_are_bounded(faulty_s3, s3_store: Store) -> None:
    faulty_s3.faults = [503] * 100
    with pytest.raises(StoreError, match="failed 6 times"):
        s3_store.read("x")
    assert (s3_store.retries, faulty_s3.requests) == (5, 6)


def test_create_knows_its_own_object_when_the_answer_was_lost(faulty_s3, s3_store: Store) -> None:
    faulty_s3.faults = ["reset"]
    assert s3_store.create("v/1", b"mine")
    assert faulty_s3.faults == []
    faulty_s3.faults = ["reset"]
    assert not s3_store.create("v/1", b"theirs")
    assert s3_store.read("v/1") == b"mine"


def test_a_server_without_conditional_writes_is_noticed(faulty_s3, s3_store: Store) -> None:
    faulty_s3.lenient = True
    with pytest.raises(StoreError, match=r"ignores `If-None-Match.* copy the dataset"):
        s3_store.check_exclusive()
    faulty_s3.lenient = False
    assert s3_store.list() == []
    faulty_s3.faults = [501]
    with pytest.raises(StoreError, match="cannot be written to by `If-None-Match"):
        s3_store.check_exclusive()


def test_a_server_that_looks_first_and_writes_later_is_noticed(faulty_s3, s3_store: Store) -> None:
    faulty_s3.racing = threading.Barrier(2, timeout=0.2)
    with pytest.raises(StoreError, match="in requests that meet"):
        s3_store.check_exclusive()
    faulty_s3.racing = None
    assert s3_store.list() == []
    s3_store.check_exclusive()
    before = faulty_s3.requests
    s3_store.child("y").check_exclusive()  # known by now
    assert faulty_s3.requests == before


def test_an_empty_folder_is_listed_by_one_request(faulty_s3, s3_store: Store) -> None:
    assert s3_store.list("nothing") == []
    assert faulty_s3.requests == 1


def test_objects_that_stand_for_folders_are_no_files(
    faulty_s3, s3_bucket: str, s3_store: Store
) -> None:
    """As consoles and tools that copy trees make them."""
    files = fsspec.filesystem("s3", endpoint_url=faulty_s3.url, skip_instance_cache=True)
    for folder in ("", "ds/", "ds/versions/", "ds/shards/of-a-tool/", "empty/"):
        files.call_s3("put_object", Bucket=s3_bucket, Key=f"some/prefix/{folder}", Body=b"")
    assert s3_store.list() == s3_store.list("ds") == s3_store.child("ds").list("versions") == []
    s3_store.write("ds/shards/one", b"1")
    assert s3_store.list() == ["ds/shards/one"]
    assert s3_store.folders() == ["ds", "empty"]
    assert find_orphans(s3_store, "ds", min_age_seconds=0)[0].path == "shards/one"
    assert not s3_store.exists("ds/versions")


def test_an_unreachable_server_is_a_store_error(s3_store: Store) -> None:
    gone = open_store(
        "s3://bucket/x",
        retry=RetryPolicy(attempts=2, base_seconds=0.0),
        endpoint_url="http://127.0.0.1:9",
    )
    with pytest.raises(StoreError, match="failed 2 times"):
        gone.read("x")
    assert gone.retries == 1


@pytest.mark.parametrize("told", [errno.EEXIST, errno.ETIMEDOUT])
def test_create_knows_its_own_file_when_the_answer_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: int
) -> None:
    """On NFS: the name is made, the answer gets lost, and who asks again finds it taken."""
    store, link = open_store(str(tmp_path), retry=RetryPolicy(base_seconds=0)), os.link

    def unheard(source: str, name: str) -> None:
        monkeypatch.setattr(os, "link", link)
        if os.path.exists(name):
            raise FileExistsError(errno.EEXIST, "File exists", source, None, name)
        link(source, name)
        raise OSError(told, os.strerror(told), source, None, name)

    for data, made in ((b"mine", True), (b"theirs", False)):
        monkeypatch.setattr(os, "link", unheard)
        assert store.create("v/1", data) is made
        assert store.read("v/1") == b"mine"
        assert store.list() == ["v/1"]


def test_write_knows_its_own_file_when_the_answer_was_lost(
    root: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NFS: who asks again to rename finds that there is nothing of the old name."""
    replace = os.replace
    root.write("x", b"old")

    def unheard(source: str, name: str) -> None:
        replace(source, name)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", source, None, name)

    monkeypatch.setattr(os, "replace", unheard)
    root.write("x", b"new")
    assert root.read("x") == b"new"
    assert root.list() == ["x"]

    def removed(source: str, name: str) -> None:
        os.unlink(source)
        replace(source, name)

    monkeypatch.setattr(os, "replace", removed)
    with pytest.raises(NotFoundError):
        root.write("x", b"newer")
    assert root.read("x") == b"new"


def test_a_killed_writer_leaves_old_or_new_whole(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from services.shards.store import open_store\n"
        f"store = open_store({str(tmp_path)!r})\n"
        "print('go', flush=True)\n"
        "for n in range(10**9):\n"
        "    store.write('same', bytes([n % 256]) * 300_000)\n"
        "    store.create(f'new{n}', bytes([n % 256]) * 300_000)\n"
    )
    store = open_store(str(tmp_path))
    for delay in (0.0, 0.003, 0.01, 0.03):
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        for path in store.list():
            if not path.endswith(".tmp"):
                data = store.read(path)
                assert len(data) == 300_000
                assert len(set(data)) == 1


def test_every_error_is_ours(root: Store) -> None:
    root.write("d/x", b"")
    with pytest.raises(SeitError):
        root.read("d")
