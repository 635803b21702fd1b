"""Forms of the answers: JSON or protobuf, examples, problems; and nothing that breaks them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from pydantic import TypeAdapter
from schemathesis.specs.openapi.checks import positive_data_acceptance

from services.settings import load_settings
from services.shards.store import Store, open_store
from services.stats.answers import JSON, PROTOBUF, wanted
from services.stats.app import create_app
from services.stats.streams import open_runs
from services.wire.seit import v1 as wire
from tests.small_datasets import write_dataset
from tests.small_runs import write_run

DATASET = "/v1/datasets/digits"
ANSWERS = {
    "/v1/datasets": wire.DatasetList,
    DATASET: wire.DatasetSummary,
    f"{DATASET}/versions": wire.DatasetList,
    f"{DATASET}/shards": wire.ShardList,
    f"{DATASET}/storage": wire.StorageReport,
    f"{DATASET}/growth": wire.GrowthReport,
    f"{DATASET}/labels": wire.LabelReport,
    f"{DATASET}/codes": wire.CodeReport,
    f"{DATASET}/health": wire.HealthReport,
    f"{DATASET}/samples": wire.SampleList,
    f"{DATASET}/samples/train/3": wire.Sample,
    "/v1/streams": wire.StreamList,
    "/v1/streams/mtm": wire.StreamInfo,
    "/v1/jobs": wire.JobList,
}


def make_client(folder: Path) -> TestClient:
    root: Store = open_store(str(folder / "data"))
    write_dataset(root)
    write_dataset(root, seed=1)
    write_run(folder / "runs/mtm", state="finished")
    environment = {
        "SEIT_STATS_FRESH_SECONDS": "600",
        "SEIT_STATS_RATE": "1M",
        "SEIT_CACHE_DIR": str(folder / "cache"),
    }
    runs = open_runs([str(folder / "runs")])
    return TestClient(create_app(root, load_settings(environment), runs))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with make_client(tmp_path_factory.mktemp("forms")) as client:
        yield client


@pytest.mark.parametrize(("path", "kind"), ANSWERS.items())
def test_json_and_protobuf_say_the_same(client: TestClient, path: str, kind: type) -> None:
    while client.get(f"{DATASET}/storage").json()["folder"] is None:
        pass  # the listing changes answers once
    plain = client.get(path)
    assert plain.headers["content-type"] == JSON
    binary = client.get(path, headers={"accept": PROTOBUF})
    assert binary.headers["content-type"] == PROTOBUF
    assert kind.parse(binary.content) == TypeAdapter(kind).validate_json(plain.content)
    assert plain.headers["etag"] != binary.headers["etag"]
    assert "accept" in plain.headers["vary"]


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/json", JSON),
        ("application/x-protobuf", PROTOBUF),
        ("application/protobuf, application/json;q=0.9", PROTOBUF),
        ("application/protobuf;q=0.1, application/json", JSON),
        ("text/html", JSON),
        ("application/protobuf;q=x", JSON),
    ],
)
def test_the_preferred_form_is_sent(accept: str, media: str) -> None:
    assert wanted(accept) == media


def test_every_answer_has_an_example_of_its_own_form(client: TestClient) -> None:
    api = client.get("/openapi.json").json()
    shown = 0
    for path, operations in api["paths"].items():
        content = operations["get"]["responses"]["200"]["content"]
        if path.startswith("/v1") and JSON in content:
            assert PROTOBUF in content
            name = content[JSON]["schema"]["$ref"].rpartition("/")[2]
            TypeAdapter(getattr(wire, name)).validate_python(content[JSON]["example"])
            shown += 1
    assert shown == 15


def test_samples_are_the_rows(client: TestClient) -> None:
    page = client.get(f"{DATASET}/samples", params={"split": "train", "limit": 7}).json()
    rest = client.get(f"{DATASET}/samples", params={"split": "train", "cursor": page["next"]})
    rows = page["samples"] + rest.json()["samples"]
    assert [one["row"] for one in rows] == list(range(15))
    assert rows[6]["key"] == "train/1/1/1.png"
    one = client.get(f"{DATASET}/samples/train/6").json()
    assert (one["label"], one["class_name"], len(one["ids"])) == (1, "one", 24)
    assert client.get(f"{DATASET}/samples/train/15").status_code == 404
    refused = client.get(f"{DATASET}/samples/train/6/picture")
    assert (refused.status_code, "no tokenizer" in refused.json()["detail"]) == (404, True)


OPERATIONS = (
    "/v1/datasets",
    *(
        f"/v1/datasets/{{name}}{tail}"
        for tail in (
            "",
            "/versions",
            "/shards",
            "/storage",
            "/growth",
            "/labels",
            "/codes",
            "/health",
            "/samples",
            "/samples/{split}/{row}",
            "/samples/{split}/{row}/picture",
        )
    ),
    *("/v1/streams", "/v1/streams/{run}", "/v1/jobs", "/v1/jobs/{id}", "/healthz", "/readyz"),
)


def test_all_operations_are_under_test(client: TestClient) -> None:
    assert set(client.get("/openapi.json").json()["paths"]) == set(OPERATIONS)


def conforms(client: TestClient, path: str, examples: int) -> None:
    """Requests as the description allows and forbids them: each answer is one it describes."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)

    @given(schema[path]["GET"].as_strategy())
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def check(case: schemathesis.Case) -> None:
        # Names and cursors are text to the description, but not any text stands for something.
        case.call_and_validate(session=client, excluded_checks=[positive_data_acceptance])

    check()


@pytest.mark.parametrize("path", OPERATIONS)
def test_the_service_is_what_it_describes(client: TestClient, path: str) -> None:
    conforms(client, path, 6)


@pytest.mark.slow
@pytest.mark.parametrize("path", OPERATIONS)
def test_the_service_is_what_it_describes_at_length(client: TestClient, path: str) -> None:
    conforms(client, path, 500)


PARTS = (
    "v1", "datasets", "digits", "shards", "samples", "train", "0", "picture", "streams", "mtm",
    "jobs", "..", ".", "%2e%2e", "%2f", "..%2f", "%00", "%ff", "\\", "~", "etc", "passwd", "assets",
    "app.js", "-1", "99999999999999999999", "?version=1", "?cursor=1.0", "?limit=0", "?split=%ff",
    "?view=crop", "?label=-9", "#", "%", "é", "a" * 300, ";", "$(id)", "{name}", "metrics",
)  # fmt: skip


def fuzz(client: TestClient, count: int, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(count):
        parts = draw.choices(PARTS, k=draw.randint(0, 6))
        if draw.random() < 0.2:
            parts.append(quote(bytes(draw.randbytes(draw.randint(1, 12))), safe=""))
        path = "/" + "/".join(parts)
        answer = client.get(path, follow_redirects=False)
        assert answer.status_code < 500, (path, answer.text)
        assert "root:" not in answer.text
        assert str(Path.home()) not in answer.text


def test_no_path_breaks_the_service(client: TestClient) -> None:
    fuzz(client, 1000, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_none_of_100_000_paths_breaks_the_service(client: TestClient) -> None:
    fuzz(client, 100_000, seed=1)
