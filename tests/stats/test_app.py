"""The HTTP service over real files, in this process and as a server of its own."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from services.cli import listening
from services.errors import InvalidInputError
from services.settings import load_settings
from services.shards.store import Store
from services.stats.app import create_app
from services.stats.report import storage_report, summarize
from services.wire.seit import v1 as wire
from tests.small_datasets import write_dataset

GETS = [
    "/v1/datasets",
    "/v1/datasets/digits",
    "/v1/datasets/digits/versions",
    "/v1/datasets/digits/shards",
    "/v1/datasets/digits/storage",
    "/v1/datasets/digits/growth",
    "/v1/datasets/digits/labels",
    "/v1/datasets/digits/codes",
    "/v1/datasets/digits/samples",
]
PAGES = Path(__file__).resolve().parents[2] / "services/stats/pages"

COMMAND = "import sys; from services.cli import main; main(sys.argv[1:])"
"""What the program `seit` does, in this Python."""


@pytest.fixture
def client(root: Store) -> Iterator[TestClient]:
    app = create_app(root, load_settings({"SEIT_STATS_FRESH_SECONDS": "0"}))
    with TestClient(app) as client:
        yield client


def problem_of(client: TestClient, path: str, status: int) -> wire.Problem:
    answer = client.get(path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = TypeAdapter(wire.Problem).validate_json(answer.content)
    assert problem.status == status
    return problem


def test_datasets_are_listed_in_pages(client: TestClient, root: Store) -> None:
    assert client.get("/v1/datasets").json() == {"datasets": [], "next": ""}
    for name in ("a", "b", "c"):
        write_dataset(root, name, shards=1)
    first = client.get("/v1/datasets", params={"limit": 2}).json()
    assert [one["name"] for one in first["datasets"]] == ["a", "b"]
    rest = client.get("/v1/datasets", params={"limit": 2, "cursor": first["next"]}).json()
    assert [one["name"] for one in rest["datasets"]] == ["c"]
    assert rest["next"] == ""


def test_answers_are_the_wire_messages(client: TestClient, root: Store) -> None:
    manifest = write_dataset(root).manifest
    summary = client.get("/v1/datasets/digits")
    assert TypeAdapter(wire.DatasetSummary).validate_json(summary.content) == summarize(manifest)
    storage = client.get("/v1/datasets/digits/storage")
    report = TypeAdapter(wire.StorageReport).validate_json(storage.content)
    report.folder = None  # of the listing, not of the manifest
    assert report == storage_report(manifest)
    shards = TypeAdapter(wire.ShardList).validate_json(
        client.get("/v1/datasets/digits/shards").content
    )
    assert [info.shard for info in shards.shards] == [
        shard for split in manifest.splits for shard in split.shards
    ]
    assert {"bytes_per_image", "share_of_source", "tokenizer_kind"} <= summary.json().keys()


def test_shards_filter_and_page(client: TestClient, root: Store) -> None:
    write_dataset(root)
    path, query = "/v1/datasets/digits/shards", {"split": "train", "limit": "2"}
    first = client.get(path, params=query).json()
    rest = client.get(path, params={**query, "cursor": first["next"]}).json()
    assert [one["split"] for one in first["shards"] + rest["shards"]] == ["train"] * 3
    assert rest["next"] == ""
    validation = client.get(path, params={"split": "validation"}).json()
    assert [one["shard"]["rows"] for one in validation["shards"]] == [2]


def test_versions_show_growth(client: TestClient, root: Store) -> None:
    write_dataset(root, shards=1)
    write_dataset(root, shards=2, seed=1)
    versions = client.get("/v1/datasets/digits/versions").json()["datasets"]
    assert [(one["version"], one["rows"]) for one in versions] == [(2, 12), (1, 7)]
    assert client.get("/v1/datasets/digits", params={"version": 1}).json()["rows"] == 7
    one = client.get("/v1/datasets/digits/versions", params={"cursor": "2"}).json()["datasets"]
    assert [version["version"] for version in one] == [1]


def test_a_new_version_is_seen_within_five_seconds_by_default() -> None:
    assert load_settings({}).stats_fresh_seconds < 5


def settled(client: TestClient, path: str) -> httpx.Response:
    """The answer when the folder has been listed, where it tells of that."""
    until = time.monotonic() + 20
    while (answer := client.get(path)).json().get("folder", answer) is None:
        assert time.monotonic() < until, "the folder is never listed"
        time.sleep(0.01)
    return answer


@pytest.mark.parametrize("path", GETS)
def test_a_known_answer_is_not_sent_again(client: TestClient, root: Store, path: str) -> None:
    write_dataset(root)
    first = settled(client, path)
    tag = first.headers["etag"]
    again = client.get(path, headers={"if-none-match": f'"other", {tag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == tag
    assert client.get(path, headers={"if-none-match": '"other"'}).content == first.content
    write_dataset(root, seed=1)
    changed = client.get(path, headers={"if-none-match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag


def test_tags_differ_by_query(client: TestClient, root: Store) -> None:
    write_dataset(root)
    path = "/v1/datasets/digits/shards"
    tags = {client.get(path + query).headers["etag"] for query in ("", "?limit=1", "?split=train")}
    assert len(tags) == 3


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v1/datasets/none", 404, "no dataset 'none'"),
        ("/v1/datasets/digits?version=9", 404, "no version 9; it has 1 to 1"),
        ("/v1/datasets/digits/shards?split=test", 404, "it has train, validation"),
        ("/v1/datasets/digits/shards?cursor=x", 422, "start again without a cursor"),
        ("/v1/datasets/digits/shards?cursor=1.0&version=2", 422, "belongs to version 1"),
        ("/v1/datasets/digits/versions?cursor=x", 422, "start again without a cursor"),
        ("/v1/datasets?limit=0", 422, "query.limit"),
        ("/v1/datasets?limit=100000", 422, "query.limit"),
        ("/v1/datasets/digits?version=two", 422, "query.version"),
        ("/v1/datasets/%2e%2e", 422, "not valid"),
        ("/v1/datasets/..%2f..%2fetc%2fpasswd", 404, "/docs"),
        ("/v1/datasets/%00", 422, "not valid"),
        ("/v1/datasets/%ff%fe/shards", 422, "not valid"),
        ("/nothing", 404, "/docs"),
    ],
)
def test_a_wrong_request_is_a_problem(
    client: TestClient, root: Store, path: str, status: int, words: str
) -> None:
    write_dataset(root)
    assert words in problem_of(client, path, status).detail


def test_a_damaged_manifest_is_told(client: TestClient, root: Store) -> None:
    write_dataset(root)
    root.write("digits/versions/00000001.json", b'{"format": 3}')
    assert "found format 3" in problem_of(client, "/v1/datasets/digits", 409).detail


def test_writing_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/datasets")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert answer.headers["content-type"] == "application/problem+json"


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.text(min_size=1, max_size=40), tail=st.sampled_from(["", "/shards", "/storage"]))
def test_no_name_breaks_the_service(client: TestClient, name: str, tail: str) -> None:
    encoded = quote(name.encode("utf-8", "surrogatepass"), safe="")
    answer = client.get(f"/v1/datasets/{encoded}{tail}")
    # a name of slashes alone may lead to the list of all datasets
    assert answer.status_code in (200, 307, 404, 422), answer.text
    assert answer.status_code != 200 or "datasets" in answer.json()


def test_health_and_openapi(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    api = client.get("/openapi.json").json()
    schemas = api["components"]["schemas"]
    assert {"rows", "bytes_per_image", "spec"} <= schemas["DatasetSummary"]["properties"].keys()
    assert {"entropy_bits", "pixel_bytes"} <= schemas["SplitStorage"]["properties"].keys()
    for path in ("/v1/datasets/{name}", "/v1/datasets/{name}/shards"):
        answers = api["paths"][path]["get"]["responses"]
        assert list(answers["404"]["content"]) == ["application/problem+json"]
        assert answers["422"]["content"]["application/problem+json"]["schema"]["$ref"].endswith(
            "/Problem"
        )


def test_the_docs_page_needs_nothing_from_outside(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert page.text == (PAGES / "api.html").read_text("utf-8")
    assert re.findall(r"https?://", page.text) == []


def test_large_answers_are_zipped(client: TestClient, root: Store) -> None:
    write_dataset(root, shards=8)
    answer = client.get("/v1/datasets/digits/shards", headers={"accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert len(answer.json()["shards"]) == 9


@pytest.mark.system
def test_a_real_server_answers_and_ends(root: Store) -> None:
    write_dataset(root)
    server, port = start_server(root)
    base = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{base}/healthz", server)
        with urllib.request.urlopen(f"{base}/v1/datasets/digits", timeout=10) as answer:
            summary = TypeAdapter(wire.DatasetSummary).validate_json(answer.read())
        assert (summary.version, summary.rows) == (1, 17)
        with pytest.raises(urllib.error.HTTPError, match="422"):
            urllib.request.urlopen(f"{base}/v1/datasets/%2e%2e", timeout=10)
        shown = subprocess.run(
            [sys.executable, "-c", COMMAND, "stats", base, "digits"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert shown.returncode == 0, shown.stderr
        assert "validation" in shown.stdout
    finally:
        server.terminate()
        assert server.wait(20) in (0, -15)


@pytest.mark.system
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_server_answers_at_the_address_that_it_says(root: Store, host: str) -> None:
    try:
        listening(host, 0)[0].close()
    except InvalidInputError:
        pytest.skip(f"this machine has no {host}")
    words = [sys.executable, "-c", COMMAND, "serve", root.url, "--host", host, "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            said = next(line for line in server.stdout if "http:" in line)  # behind a long root
            url = said.split()[-1]
            assert urlsplit(url).hostname == host
            wait_for(f"{url}healthz", server)
        finally:
            server.terminate()


def start_server(root: Store, stderr: int | None = None) -> tuple[subprocess.Popen[bytes], int]:
    """`seit serve` as a process, and the port that it will answer at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-c", COMMAND, "serve", root.url, "--port", str(port)]
    return subprocess.Popen(words, stderr=stderr), port


def wait_for(url: str, server: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Return when the server answers; fail if it ended, or says nothing for too long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert server.poll() is None, "the server ended by itself"
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"no answer from {url} within {seconds} s")
