"""What the catalog knows, when it looks again, and what it keeps."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from services.errors import FormatError, InvalidInputError, NotFoundError
from services.settings import load_settings
from services.shards.store import Entries, LocalStore, Store
from services.stats.apart import Here
from services.stats.app import create_app
from services.stats.catalog import Catalog
from services.stats.listing import ShardQuery
from tests.small_datasets import write_dataset


class Asked:
    """What was asked of the storage: files read, folders listed."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.reads: list[str] = []
        self.scans: list[str] = []
        read, scan = LocalStore.read, LocalStore.scan

        def noted_read(store: LocalStore, path: str) -> bytes:
            self.reads.append(path)
            return read(store, path)

        def noted_scan(store: LocalStore, prefix: str = "") -> Entries:
            self.scans.append(prefix)
            return scan(store, prefix)

        patch.setattr(LocalStore, "read", noted_read)
        patch.setattr(LocalStore, "scan", noted_scan)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def catalog_of(root: Store, clock: Clock | None = None, shard_limit: int = 1000) -> Catalog:
    return Catalog(Here(root), fresh_seconds=2, shard_limit=shard_limit, clock=clock or Clock())


def test_an_empty_root_holds_nothing(root: Store) -> None:
    assert catalog_of(root).dataset_page("", 10).datasets == []


def test_folders_that_are_no_datasets_are_passed_over(root: Store) -> None:
    root.write("Not A Name/versions/00000001.json", b"{}")
    root.write("begun/shards/train-00.parquet", b"not committed yet")
    root.write("a-file.txt", b"")
    write_dataset(root)
    catalog = catalog_of(root)
    assert list(catalog.datasets()) == ["digits"]
    assert catalog.versions("digits") == [1]
    with pytest.raises(NotFoundError, match="'begun'"):
        catalog.facts("begun")


def test_a_root_that_is_a_dataset_is_told_apart_from_an_empty_one(
    root: Store, caplog: pytest.LogCaptureFixture
) -> None:
    catalog_of(root).warm()
    write_dataset(root)
    catalog_of(root).warm()
    assert caplog.text == ""
    catalog_of(root.child("digits")).warm()
    assert f"one dataset: give the folder that holds it, {root.url}" in caplog.text


def test_a_new_version_is_seen_when_the_listing_is_old(root: Store) -> None:
    clock = Clock()
    catalog = catalog_of(root, clock)
    write_dataset(root)
    assert catalog.summary("digits").version == 1
    write_dataset(root, seed=1)
    clock.now = 1.9
    assert catalog.summary("digits").version == 1
    clock.now = 2.0
    assert catalog.summary("digits").version == 2
    assert catalog.summary("digits", 1).version == 1


def test_requests_neither_list_nor_read_again(root: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(root)
    asked = Asked(monkeypatch)
    catalog = catalog_of(root)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: catalog.facts("digits").digest, range(50)))
    assert len(set(found)) == 1
    assert asked.reads == ["versions/00000001.json"]
    assert asked.scans == ["versions"]


def test_only_manifests_are_read(root: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(root)
    asked = Asked(monkeypatch)
    catalog = catalog_of(root)
    catalog.dataset_page("", 10)
    catalog.version_page("digits", None, 10)
    catalog.shard_page("digits", None, ShardQuery(), "", 10)
    assert set(asked.reads) == {"versions/00000001.json"}


def test_memory_is_bounded_by_shards(root: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        write_dataset(root, shards=3, seed=seed)  # 4 shards a version
    asked = Asked(monkeypatch)
    catalog = catalog_of(root, shard_limit=11)  # room for two of them
    for version in (1, 2, 1, 3, 1):
        catalog.facts("digits", version)
    assert len(asked.reads) == 3  # 2 was used least recently when 3 came
    catalog.facts("digits", 2)
    assert len(asked.reads) == 4


def test_a_manifest_larger_than_the_bound_still_answers(root: Store) -> None:
    write_dataset(root)
    assert catalog_of(root, shard_limit=1).facts("digits").about.version == 1


def test_a_dataset_that_is_gone_is_forgotten(root: Store) -> None:
    clock = Clock()
    catalog = catalog_of(root, clock)
    write_dataset(root)
    catalog.facts("digits")
    for path in root.list():
        root.delete(path)
    clock.now = 5
    with pytest.raises(NotFoundError, match="digits"):
        catalog.facts("digits")
    write_dataset(root, shards=1, seed=7)
    clock.now = 10
    assert catalog.summary("digits").shards == 2


def removed(root: Store) -> None:
    for path in root.list():
        root.delete(path)


def test_a_dataset_made_anew_is_told_of_as_it_is(root: Store) -> None:
    """Removed and written again under its name between two looks, to the same version numbers."""
    clock = Clock()
    catalog, fresh = catalog_of(root, clock), catalog_of(root)
    for seed in range(2):
        write_dataset(root, seed=seed)

    def told(catalog: Catalog) -> list[object]:
        query = ShardQuery(sort="-path")
        return [
            catalog.dataset_page("", 10),
            catalog.version_page("digits", None, 10),
            catalog.growth_page("digits", None, 10),
            *(catalog.facts("digits", version).digest for version in (1, 2)),
            catalog.shard_page("digits", None, query, "", 10).message(),
        ]

    first, stamps = told(catalog), (catalog.stamp("digits"), catalog.stamp(None))
    assert told(catalog) == first
    removed(root)
    for seed in range(2):
        write_dataset(root, shards=7, rows=9, seed=seed + 5)
    clock.now = 2
    anew = told(catalog)
    assert anew == told(fresh)
    assert not any(old in anew for old in first if old)
    assert catalog.stamp("digits") != stamps[0]
    assert catalog.stamp(None) != stamps[1]


def test_what_the_folder_held_goes_with_the_dataset(root: Store) -> None:
    clock = Clock()
    catalog = catalog_of(root, clock)
    write_dataset(root)
    until = time.monotonic() + 20
    while catalog.folder("digits") is None:
        assert time.monotonic() < until, "the folder is never listed"
        time.sleep(0.01)
    clock.now = 2
    write_dataset(root, seed=1)
    assert catalog.folder("digits") is not None, "a version more makes no other dataset"
    removed(root)
    write_dataset(root, seed=7)
    clock.now = 4
    catalog.summary("digits")
    assert catalog.folder("digits") is None


def test_answers_of_a_dataset_made_anew_are_not_those_kept(root: Store) -> None:
    write_dataset(root, rows=5)
    app = create_app(root, load_settings({"SEIT_STATS_FRESH_SECONDS": "0.3"}), [])
    with TestClient(app) as client:
        paths = ["/v1/datasets", *(f"/v1/datasets/digits{tail}" for tail in ("", "/versions"))]
        before = [client.get(path).content for path in paths]
        assert [client.get(path).content for path in paths] == before
        removed(root)
        write_dataset(root, rows=50)
        until = time.monotonic() + 20
        while any(client.get(path).content == old for path, old in zip(paths, before, strict=True)):
            assert time.monotonic() < until, "the dataset that was removed is told of for ever"
            time.sleep(0.05)
        assert client.get(paths[1]).json()["rows"] == 152


def test_pages_of_datasets_are_a_partition(root: Store) -> None:
    names = ["a", "b", "b.2", "b-1", "c"]
    for name in names:
        write_dataset(root, name, shards=1)
    catalog = catalog_of(root)
    seen, after = [], ""
    while True:
        page = catalog.dataset_page(after, 2)
        seen += [one.name for one in page.datasets]
        after = page.next
        if not after:
            break
    assert seen == sorted(names)


def test_versions_come_newest_first(root: Store) -> None:
    for seed in range(3):
        write_dataset(root, shards=seed + 1, seed=seed)
    catalog = catalog_of(root)
    first = catalog.version_page("digits", None, 2)
    assert [(one.version, one.shards) for one in first.datasets] == [(3, 4), (2, 3)]
    rest = catalog.version_page("digits", int(first.next), 2)
    assert [one.version for one in rest.datasets] == [1]
    assert rest.next == ""


def test_a_damaged_manifest_hides_no_other(root: Store, caplog: pytest.LogCaptureFixture) -> None:
    write_dataset(root, "good")
    write_dataset(root, "bad")
    root.write("bad/versions/00000001.json", b'{"format": 3}')
    catalog = catalog_of(root)
    with caplog.at_level(logging.WARNING):
        assert [one.name for one in catalog.dataset_page("", 10).datasets] == ["good"]
    assert "found format 3" in caplog.text
    with pytest.raises(FormatError, match="upgrade"):
        catalog.facts("bad")


def test_a_cursor_keeps_to_its_version(root: Store) -> None:
    clock = Clock()
    catalog = catalog_of(root, clock)
    write_dataset(root)
    page = catalog.shard_page("digits", None, ShardQuery(), "", 2).message()
    write_dataset(root, seed=1)
    clock.now = 5
    rest = catalog.shard_page("digits", None, ShardQuery(), page.next, 10).message()
    assert (rest.version, len(rest.shards)) == (1, 2)
    with pytest.raises(InvalidInputError, match="belongs to version 1"):
        catalog.shard_page("digits", 2, ShardQuery(), page.next, 10)


@pytest.mark.parametrize("name", ["..", "a/b", "", "A", "a..b", "x" * 64, "a\0"])
def test_names_that_leave_the_root_are_refused(root: Store, name: str) -> None:
    with pytest.raises(InvalidInputError, match="not valid"):
        catalog_of(root).versions(name)


def test_an_unknown_version_is_named_with_those_that_stand(root: Store) -> None:
    write_dataset(root)
    with pytest.raises(NotFoundError, match="no version 4; it has 1 to 1"):
        catalog_of(root).facts("digits", 4)
