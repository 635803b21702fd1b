"""What is wrong with a dataset is found, the gravest first, in words that stand by themselves."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from services.settings import load_settings
from services.shards.manifest import LoadedManifest, commit
from services.shards.store import Store
from services.shards.writer import build_split, write_shard
from services.stats.app import create_app
from services.stats.facts import Facts, facts_of
from services.stats.health import health_report, standing_findings
from services.stats.streams import open_runs
from services.stream.account import Account
from services.types import TokenRows
from services.wire.seit import v1 as wire
from tests.small_datasets import SPEC, write_dataset
from tests.small_runs import write_run


def texts(findings: list[wire.Finding]) -> list[str]:
    return [f"{one.severity}: {one.text}" for one in findings]


def write_skewed(root: Store, classes: list[str]) -> list[wire.Finding]:
    """200 rows of label 0, one of label 2, two without any; only two of the codes."""
    labels = np.array([0] * 200 + [2, -1, -1])
    ids = np.zeros((len(labels), SPEC.grid_height, SPEC.grid_width), np.uint16)
    ids[:, 0] = np.arange(len(labels))[:, None] % 2
    keys = [f"{row}.png" for row in range(len(labels))]
    sizes = np.zeros(len(labels), np.int64)
    shard = write_shard(root, "skewed", "train", TokenRows(ids, labels, keys, sizes), SPEC)
    splits = [build_split(root, "skewed", "train", [shard], SPEC.codes)]
    manifest = wire.Manifest(
        dataset="skewed", spec=replace(SPEC), tokenizer_kind="dct", classes=classes, splits=splits
    )
    return standing_findings(facts_of(commit(root, manifest)))


def test_skew_bare_rows_and_dead_codes_are_found(root: Store) -> None:
    found = texts(write_skewed(root, ["ant", "bee", "cat"]))
    assert found == [
        "warning: rows whose whole grid another row has before them: 201 (99.01%)",
        "warning: rows of train without a label: 2 (1.0%)",
        "warning: classes without a row in train: 1 (bee)",
        "warning: labels of train are skewed: 200 rows of the largest class, 1 of the smallest",
        "warning: dead codes, which no token has: 14 of 16 (88%)",
    ]


def test_without_names_no_class_is_missing(root: Store) -> None:
    assert [text for text in texts(write_skewed(root, [])) if "class" in text] == [
        "warning: labels of train are skewed: 200 rows of the largest class, 1 of the smallest"
    ]


def test_lost_files_and_failing_runs_are_found_and_no_path_is_told(
    root: Store, tmp_path: Path
) -> None:
    first, second, *_ = write_dataset(root).manifest.splits[0].shards
    root.child("digits").delete(first.path)
    runs = tmp_path / "runs"
    lost = Account(lost=(f"{root.url}/digits/{second.path}",))
    write_run(runs / "mtm", state="failed", account=lost)
    write_run(runs / "torn")
    (runs / "torn/streams/rank-0.json").write_text("{")
    chosen = load_settings({"SEIT_CACHE_DIR": str(tmp_path / "cache")})
    with TestClient(create_app(root, chosen, open_runs([str(runs)]))) as client:
        end = time.monotonic() + 30
        while "missing" not in (health := client.get("/v1/datasets/digits/health")).text:
            assert time.monotonic() < end, health.text
        rows = client.get("/v1/datasets/digits/samples")
        torn = client.get("/v1/streams/torn")
    found = [f"{one['severity']}: {one['text']}" for one in health.json()["findings"]]
    assert found[:3] == [
        f"bad: files missing, or of another size: 1 ({first.path})",
        f"bad: damaged shards that runs left out: 1 ({second.path})",
        "warning: run mtm failed",
    ]
    assert (rows.status_code, f"ROOT/digits/{first.path}" in rows.text) == (404, True)
    assert torn.json()["state"] == "unreadable"
    assert str(tmp_path) not in health.text + rows.text + torn.text


PARTS = st.lists(st.sampled_from(["a", "b", "ab", "c.parquet"]), min_size=1, max_size=3)
PATHS = PARTS.map(lambda parts: "/".join(["shards", *parts]))


@settings(deadline=None)
@given(st.lists(PATHS, unique=True, max_size=12), st.data())
def test_shards_left_out_are_those_whose_path_a_name_ends_with(
    paths: list[str], data: st.DataObject
) -> None:
    known = st.sampled_from(paths) if paths else PATHS
    name = st.tuples(st.sampled_from(["", "s3://b/digits/", "/", "x"]), known | PATHS).map("".join)
    left_out = data.draw(st.lists(name, max_size=8))
    wanted = {path for path in paths if any(f"/{one}".endswith(f"/{path}") for one in left_out)}
    found = [one for one in damaged(version_of(paths), left_out) if one.kind == "shards"]
    assert [one.count for one in found] == ([len(wanted)] if wanted else [])
    assert all(path in found[0].text for path in sorted(wanted)[:3])


def test_many_shards_and_many_left_out_are_compared_at_once() -> None:
    """Each by each it took 10 s of the event loop."""
    paths = [f"shards/train-{number:016x}.parquet" for number in range(20_000)]
    facts, began = version_of(paths), time.process_time()
    found = damaged(facts, [f"s3://bucket/digits/{path}" for path in paths[:5000]])
    assert time.process_time() - began < 2
    assert found[0].count == 5000


def version_of(paths: list[str]) -> Facts:
    """What is known of a version with these shards."""
    labels = wire.LabelCounts(labels=[0], rows=[1])
    shards = [wire.Shard(path=path, rows=1, bytes=1, labels=labels) for path in paths]
    split = wire.Split(name="train", shards=shards, code_counts=[24 * len(paths), *[0] * 15])
    about = wire.Manifest(dataset="digits", version=1, spec=SPEC, splits=[split])
    return facts_of(LoadedManifest(about, ""))


def damaged(facts: Facts, left_out: list[str]) -> list[wire.Finding]:
    """What is found while a run says that it left out files of these names."""
    flow = wire.Flow(stream="digits/train", workers=1, quarantined=left_out)
    stream = wire.StreamInfo(name="mtm", stream="digits/train", ranks=[wire.StreamRank(flow=flow)])
    return health_report(facts, [], None, [stream]).findings
