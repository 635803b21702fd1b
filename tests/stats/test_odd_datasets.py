"""A dataset that something is wrong with is told of as such, and takes no other down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import FormatError, StoreError
from services.settings import load_settings
from services.shards.manifest import LoadedManifest, dump_manifest, parse_manifest
from services.shards.store import LocalStore, Store, open_store
from services.stats import facts
from services.stats.app import create_app
from services.stats.facts import facts_of
from services.stats.report import summarize
from services.stats.standing import list_all
from services.wire.seit import v1 as wire
from tests.small_datasets import write_dataset

FILE = "versions/00000001.json"
LISTS = ("/v1/datasets", "/metrics")


def rewritten(root: Store, name: str, source_bytes: int) -> None:
    """The dataset with so many source bytes in each of its shards."""
    said = json.loads(root.read(f"{name}/{FILE}"))
    for shard in said["splits"][0]["shards"]:
        shard["source_bytes"] = source_bytes
    root.write(f"{name}/{FILE}", json.dumps(said).encode())


@pytest.mark.parametrize("accept", ["application/json", "application/x-protobuf"])
def test_a_manifest_whose_sums_overflow_is_damaged(root: Store, accept: str) -> None:
    for name in ("digits", "odd"):
        write_dataset(root, name)
    rewritten(root, "odd", 2**63)
    headers = {"accept": accept}
    with TestClient(create_app(root, load_settings({}), [])) as client:
        told = client.get("/v1/datasets/odd", headers=headers)
        assert (told.status_code, "source_bytes of all splits" in told.text) == (409, True)
        for path in LISTS:
            listed = client.get(path, headers=headers)
            assert (listed.status_code, "digits" in listed.text, "odd" in listed.text) == (
                200,
                True,
                False,
            )


@pytest.mark.parametrize("defect", [ValueError, OverflowError, MemoryError, KeyError])
def test_a_defect_that_one_dataset_shows_takes_no_other_down(
    root: Store,
    defect: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("digits", "odd", "pictures"):
        write_dataset(root, name)

    def failing(manifest: wire.Manifest) -> wire.DatasetSummary:
        if manifest.dataset == "odd":
            raise defect("of this dataset")
        return summarize(manifest)

    monkeypatch.setattr(facts, "summarize", failing)
    app = create_app(root, load_settings({}), [])
    with TestClient(app, raise_server_exceptions=False) as client:
        for path in LISTS:
            listed = client.get(path)
            assert listed.status_code == 200
            assert [name in listed.text for name in ("digits", "odd", "pictures")] == [1, 0, 1]
        assert client.get("/v1/datasets/pictures").status_code == 200
        assert client.get("/v1/datasets/odd").status_code == 500
    assert "dataset odd is left out of a list" in caplog.text


def test_a_storage_that_is_out_is_no_empty_list(
    root: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(root)

    def out(store: Store, path: str) -> bytes:
        raise StoreError("the storage does not answer")

    monkeypatch.setattr(LocalStore, "read", out)
    with TestClient(create_app(root, load_settings({}), [])) as client:
        assert client.get("/v1/datasets").status_code == 503


def test_a_root_that_is_gone_is_no_empty_one(root: Store) -> None:
    write_dataset(root)
    folder = Path(root.url)
    with TestClient(
        create_app(root, load_settings({"SEIT_STATS_FRESH_SECONDS": "0"}), [])
    ) as client:
        assert client.get("/readyz").status_code == 200
        aside = folder.rename(folder.with_name("aside"))
        for path in ("/v1/datasets", "/v1/datasets/digits", "/readyz"):
            answer = client.get(path)
            assert answer.status_code == 503
            assert "the folder ROOT is gone" in answer.json()["detail"]
        assert 'seit_service_up{part="datasets"} 0.0' in client.get("/metrics").text
        folder.mkdir()
        assert client.get("/v1/datasets").json()["datasets"] == []
        folder.rmdir()
        aside.rename(folder)
        assert client.get("/v1/datasets/digits").status_code == 200


NUMBERS = st.sampled_from([0, 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1])


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> wire.Manifest:
    return write_dataset(open_store(str(tmp_path_factory.mktemp("odd")))).manifest


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_every_manifest_that_is_read_is_told_of(
    standing: wire.Manifest, data: st.DataObject
) -> None:
    """Whatever numbers stand in it: it is refused as damaged, or all of it can be answered."""
    said = json.loads(dump_manifest(standing))
    split = said["splits"][0]
    split["coefficients"] = {"nonzeros": [1, 2], "magnitudes": [3, 4], "low": -1, "high": 1}
    counts = [shard["labels"] for shard in split["shards"]]
    groups = [[said["spec"]], [split], split["shards"], counts, [split["coefficients"]]]
    for _ in range(data.draw(st.integers(1, 2))):
        group = data.draw(st.sampled_from(groups))
        key = data.draw(st.sampled_from([k for k, v in group[0].items() if _is_number(v)]))
        number = data.draw(NUMBERS)
        for holder in group:
            holder[key] = [number] * len(holder[key]) if isinstance(holder[key], list) else number
    try:
        manifest = parse_manifest(json.dumps(said).encode())
    except FormatError:
        return
    found = facts_of(LoadedManifest(manifest, ""))
    assert bytes(found.summary)
    assert bytes(found.storage)


def _is_number(value: object) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, int)


def test_a_folder_that_only_others_may_list_takes_no_dataset_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mine", "private"):
        (tmp_path / name / "versions").mkdir(parents=True)
        (tmp_path / name / "versions" / "00000001.json").write_text("{}")
    scan = LocalStore.scan

    def refused(self: LocalStore, prefix: str = "") -> object:
        if self.url.endswith("private"):
            raise StoreError("not allowed") from PermissionError("private")
        return scan(self, prefix)

    monkeypatch.setattr(LocalStore, "scan", refused)
    assert list(list_all(open_store(str(tmp_path)), 2)) == ["mine"]
