from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.errors import (
    CommitConflictError,
    FormatError,
    IntegrityError,
    InvalidInputError,
    StoreError,
)
from services.shards.manifest import (
    commit,
    dump_manifest,
    extend,
    list_datasets,
    list_versions,
    load_manifest,
    parse_manifest,
    put_asset,
    read_asset,
)
from services.shards.orphans import find_orphans
from services.shards.store import Store
from services.wire.seit import v1 as wire

DIGEST = "0123456789abcdef" * 2


def small_manifest() -> wire.Manifest:
    shard = wire.Shard(
        path="shards/train-01.parquet",
        rows=3,
        bytes=100,
        xxh3=DIGEST,
        source_bytes=9,
        labels=wire.LabelCounts(labels=[-1, 1], rows=[1, 2]),
    )
    return wire.Manifest(
        format=1,
        dataset="ds",
        version=1,
        created="2026-01-02T03:04:05+00:00",
        writer="test",
        spec=wire.TokenSpec(grid_height=2, grid_width=2, codes=4, channels=2),
        tokenizer_kind="release",
        assets=[wire.Asset(kind="codebook", path="assets/c.safetensors", bytes=5, xxh3=DIGEST)],
        classes=["ant", "bee"],
        splits=[wire.Split(name="train", shards=[shard], code_counts=[12, 0, 0, 0])],
        skipped=[wire.Skipped(path="x.jpg", reason="truncated")],
    )


GOOD: dict[str, Any] = json.loads(dump_manifest(small_manifest()))


def test_commit_and_load(store: Store, make_manifest, make_rows) -> None:
    draft = make_manifest(store, [make_rows(5, 0), make_rows(3, 1)])
    first = commit(store, draft)
    assert first.manifest.version == 1
    assert first.manifest.parent == ""
    assert first.manifest.writer.startswith("seitpp")
    second = commit(store, replace(draft, message="again"))
    assert second.manifest.version == 2
    assert second.manifest.parent == first.digest
    assert list_datasets(store) == ["ds"]
    assert list_versions(store, "ds") == [1, 2]
    assert load_manifest(store, "ds") == second
    assert load_manifest(store, "ds", 1) == first
    data = store.read("ds/versions/00000001.json")
    assert xxhash.xxh3_128_hexdigest(data) == first.digest
    asset = first.manifest.assets[0]
    assert read_asset(store, "ds", asset) == b"weights"


def test_two_writers_at_once_both_stand(root: Store, make_manifest, make_rows) -> None:
    draft = make_manifest(root, [make_rows(2, 0)])
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda n: commit(root, replace(draft, message=str(n))), range(40)))
    assert sorted(one.manifest.version for one in done) == list(range(1, 41))
    assert list_versions(root, "ds") == list(range(1, 41))
    parent = ""
    for version in range(1, 41):
        loaded = load_manifest(root, "ds", version)
        assert loaded in done
        assert loaded.manifest.parent == parent
        parent = loaded.digest


def test_appends_are_rebased_so_none_is_lost(root: Store, make_manifest, make_rows) -> None:
    base = commit(root, make_manifest(root, [make_rows(4, 0)]))
    blocks = [make_rows(2, seed) for seed in range(1, 9)]
    splits = [make_manifest(root, [rows]).splits for rows in blocks]

    def append(number: int) -> int:
        change = splits[number]
        done = commit(
            root,
            extend(root, base, change, f"block {number}"),
            rebase=lambda newest: extend(root, newest, change, f"block {number}"),
        )
        return int(done.manifest.version)

    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(append, range(8)))
    assert sorted(versions) == list(range(2, 10))
    newest = load_manifest(root, "ds").manifest
    named = [shard.path for shard in newest.splits[0].shards]
    wanted = [base.manifest.splits[0], *(change[0] for change in splits)]
    assert sorted(named) == sorted(shard.path for split in wanted for shard in split.shards)
    assert newest.splits[0].shards[0] == base.manifest.splits[0].shards[0]
    assert sum(newest.splits[0].code_counts) == 20 * 24


def test_a_change_to_an_old_version_is_a_conflict(root: Store, make_manifest, make_rows) -> None:
    draft = make_manifest(root, [make_rows(4, 0)])
    base = commit(root, draft)
    commit(root, draft)
    with pytest.raises(CommitConflictError, match="newest is version 2"):
        commit(root, extend(root, base, [], "nothing new"))
    assert list_versions(root, "ds") == [1, 2]


@pytest.mark.parametrize("codes", [1, 390, 392])
@pytest.mark.parametrize("name", ["train", "validation"])
def test_rows_of_another_number_of_codes_are_not_appended(
    root: Store, make_manifest, make_rows, name: str, codes: int
) -> None:
    """As after a renumbering by another writer while the rows were made."""
    base = commit(root, make_manifest(root, [make_rows(4, 0)]))
    (split,) = make_manifest(root, [make_rows(2, 1)]).splits
    made = replace(split, name=name, code_counts=[*split.code_counts, 0][:codes])
    with pytest.raises(InvalidInputError, match=f"has 391 codes and .* with {codes} and 8"):
        extend(root, base, [made], "more")
    counts = wire.CoefficientStats(nonzeros=[1] * 7, magnitudes=[1] * 7)
    with pytest.raises(InvalidInputError, match="were made with 391 and 7"):
        extend(root, base, [replace(split, name=name, coefficients=counts)], "more")
    assert list_versions(root, "ds") == [1]


def test_a_new_split_comes_last(root: Store, make_manifest, make_rows) -> None:
    base = commit(root, make_manifest(root, [make_rows(4, 0)]))
    more = replace(make_manifest(root, [make_rows(2, 1)]).splits[0], name="validation")
    done = commit(root, extend(root, base, [more], "held-out rows"))
    assert [split.name for split in done.manifest.splits] == ["train", "validation"]


@pytest.mark.parametrize("spoil", ["missing", "short"])
def test_files_must_stand_before_the_commit(
    root: Store, make_manifest, make_rows, spoil: str
) -> None:
    draft = make_manifest(root, [make_rows(4, 0)])
    path = f"ds/{draft.splits[0].shards[0].path}"
    if spoil == "missing":
        root.delete(path)
    else:
        root.write(path, b"PAR1")
    with pytest.raises(IntegrityError, match="not committed"):
        commit(root, draft)
    assert list_versions(root, "ds") == []


def test_a_commit_on_a_lenient_server_is_refused(faulty_s3, s3_store: Store, make_manifest) -> None:
    faulty_s3.lenient = True
    draft = make_manifest(s3_store, [])
    with pytest.raises(StoreError, match="two writers could overwrite"):
        commit(s3_store, draft)
    assert list_versions(s3_store, "ds") == []
    assert commit(s3_store, draft, sole_writer=True).manifest.version == 1
    assert commit(s3_store, draft, sole_writer=True).manifest.version == 2


def test_a_commit_whose_answers_are_lost_happens_once(
    faulty_s3, s3_store: Store, make_manifest, make_rows
) -> None:
    draft = make_manifest(s3_store, [make_rows(2, 0)])
    for version in range(1, 4):
        faulty_s3.faults = [500, "reset", None] * 8
        assert commit(s3_store, draft).manifest.version == version
    faulty_s3.faults = []
    assert list_versions(s3_store, "ds") == list(range(1, 4))


def test_a_killed_committer_leaves_whole_versions(root: Store, make_manifest, make_rows) -> None:
    commit(root, make_manifest(root, [make_rows(3, 0)]))
    program = (
        "from dataclasses import replace\n"
        "from services.shards.manifest import commit, load_manifest, put_asset\n"
        "from services.shards.store import open_store\n"
        f"root = open_store({root.url!r})\n"
        "draft = replace(load_manifest(root, 'ds').manifest, parent='', writer='')\n"
        "print('go', flush=True)\n"
        "for n in range(10**9):\n"
        "    asset = put_asset(root, 'ds', 'codebook', str(n).encode() * 50_000)\n"
        "    commit(root, replace(draft, assets=[asset]))\n"
    )
    for delay in (0.0, 0.004, 0.011, 0.05):
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        versions = list_versions(root, "ds")
        assert versions == list(range(1, len(versions) + 1))
        for version in versions:
            manifest = load_manifest(root, "ds", version).manifest
            assert read_asset(root, "ds", manifest.assets[0])
    orphans = find_orphans(root, "ds", min_age_seconds=0)
    for orphan in orphans:
        root.child("ds").delete(orphan.path)
    for version in versions:
        manifest = load_manifest(root, "ds", version).manifest
        assert read_asset(root, "ds", manifest.assets[0])
    assert find_orphans(root, "ds", min_age_seconds=0) == []


def test_a_damaged_asset_is_named(root: Store) -> None:
    asset = put_asset(root, "ds", "codebook", b"weights")
    root.write(f"ds/{asset.path}", b"Weights")
    with pytest.raises(IntegrityError, match=asset.xxh3):
        read_asset(root, "ds", asset)


@pytest.mark.parametrize("name", ["", "Upper", "../x", "a/b", "a..b", "-a", "a" * 64, "ä", "a\n"])
def test_bad_names_are_refused(root: Store, name: str) -> None:
    for ask in (list_versions, load_manifest, lambda root, name: put_asset(root, name, "k", b"")):
        with pytest.raises(InvalidInputError, match="name"):
            ask(root, name)


def test_a_copied_manifest_is_noticed(root: Store, make_manifest) -> None:
    commit(root, make_manifest(root, []))
    data = root.read("ds/versions/00000001.json")
    root.write("other/versions/00000001.json", data)
    root.write("ds/versions/00000002.json", data)
    for dataset, version in (("other", 1), ("ds", 2)):
        with pytest.raises(FormatError, match="copied or renamed"):
            load_manifest(root, dataset, version)


def test_manifest_survives_the_way_through_json() -> None:
    assert parse_manifest(dump_manifest(small_manifest())) == small_manifest()


def test_a_manifest_of_before_its_later_fields_is_read() -> None:
    old = json.loads(json.dumps(GOOD))
    (split,) = old["splits"]
    (shard,) = split["shards"]
    hashed = [name for name in split if name not in ("name", "shards", "code_counts")]
    places = old, shard, shard["labels"], split
    later = ["message", "intakes"], ["columns"], ["packed"], hashed
    for place, names in zip(places, later, strict=True):
        for name in names:
            del place[name]
    assert parse_manifest(json.dumps(old).encode()) == small_manifest()


@pytest.mark.parametrize("found", [3, 0, None, "1", 1.0, True, [1]])
def test_format_is_looked_at_first(found: object) -> None:
    data = json.dumps({"format": found, "splits": "of another time"}).encode()
    with pytest.raises(FormatError, match=r"found format .* this program reads 1 and 2"):
        parse_manifest(data)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, len(dump_manifest(small_manifest())) - 1))
def test_truncated_manifests_are_format_errors(length: int) -> None:
    with pytest.raises(FormatError):
        parse_manifest(dump_manifest(small_manifest())[:length])


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_are_format_errors(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_manifest(data)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in the JSON each value stands."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return [path]
    return [one for key, inner in items for one in [(*path, key), *_paths(inner, (*path, key))]]


def _with(path: tuple[Any, ...], value: object) -> bytes:
    changed = json.loads(json.dumps(GOOD))
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(changed).encode()


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(_paths(GOOD)), JUNK)
def test_a_changed_value_is_a_format_error_or_a_manifest(
    path: tuple[Any, ...], value: object
) -> None:
    with contextlib.suppress(FormatError):
        assert parse_manifest(_with(path, value)).format == 1


SHARD = ("splits", 0, "shards", 0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((*SHARD, "path"), "../../etc/passwd"),
        ((*SHARD, "path"), "shards/../../x"),
        ((*SHARD, "path"), "/shards/x"),
        ((*SHARD, "path"), "versions/00000001.json"),
        ((*SHARD, "path"), "shards/a\\..\\b"),
        ((*SHARD, "path"), "shards/\0"),
        ((*SHARD, "rows"), 4),
        ((*SHARD, "rows"), 0),
        ((*SHARD, "rows"), 2**63),
        ((*SHARD, "rows"), "3"),
        ((*SHARD, "rows"), -1),
        ((*SHARD, "bytes"), 2**62),
        ((*SHARD, "bytes"), 0),
        ((*SHARD, "xxh3"), "x"),
        ((*SHARD, "xxh3"), DIGEST.upper()),
        ((*SHARD, "labels"), None),
        ((*SHARD, "labels", "labels"), [1, 1]),
        ((*SHARD, "labels", "labels"), [1]),
        ((*SHARD, "labels", "labels"), [0, 2]),
        ((*SHARD, "labels", "labels"), [-2, 1]),
        (("assets", 0, "path"), "assets/../x"),
        (("assets", 0, "path"), "shards/x"),
        (("assets", 0, "kind"), "../x"),
        (("splits", 0, "code_counts"), [12, 0, 0]),
        (("splits", 0, "code_counts"), [11, 0, 0, 0]),
        (("splits", 0, "name"), "a/b"),
        (("splits",), [GOOD["splits"][0], GOOD["splits"][0]]),
        (("spec",), None),
        (("spec", "grid_height"), 129),
        (("spec", "grid_width"), 0),
        (("spec", "codes"), 65_537),
        (("spec", "channels"), 2**32 - 1),
        (("version",), 0),
        (("version",), 2),
        (("created",), "yesterday"),
        (("parent",), "x"),
        (("dataset",), "../ds"),
        (("extra",), 1),
    ],
)
def test_what_does_not_agree_is_a_format_error(path: tuple[Any, ...], value: object) -> None:
    with pytest.raises(FormatError, match="manifest"):
        parse_manifest(_with(path, value))
