"""A request is answered as it was meant, or refused: no word of its query is passed over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.stats.test_forms import ANSWERS, make_client

PATHS = [*ANSWERS, "/v1/datasets/digits/samples/train/3/picture", "/readyz", "/healthz", "/metrics"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with make_client(Path(tmp_path_factory.mktemp("parameters"))) as client:
        yield client


@pytest.mark.parametrize("path", PATHS)
def test_a_parameter_that_a_path_does_not_take_is_refused(client: TestClient, path: str) -> None:
    for query, name in (("limt=5", "limt"), ("version=1&Limit=5", "Limit"), ("limt", "limt")):
        refused = client.get(f"{path}?{query}")
        assert refused.status_code == 422
        assert refused.headers["content-type"] == "application/problem+json"
        assert repr(name) in refused.json()["detail"]


def test_the_refusal_says_what_the_path_takes(client: TestClient) -> None:
    for query in ("limt=5", "limt=5&limit=5"):
        detail = client.get(f"/v1/streams?{query}").json()["detail"]
        assert "takes state, limit, cursor" in detail
    assert "takes none" in client.get("/healthz?limt=5").json()["detail"]


def test_every_parameter_that_is_described_is_taken(client: TestClient) -> None:
    given = {"limit": "2", "cursor": "", "version": "1", "split": "train", "state": "finished"}
    given |= {"label": "1", "contains": "", "column": "", "draw": "0", "view": "crop"}
    parts = {"{name}": "digits", "{run}": "mtm", "{split}": "train", "{row}": "3", "{id}": "none"}
    for template, operations in client.get("/openapi.json").json()["paths"].items():
        path = template
        for part, value in parts.items():
            path = path.replace(part, value)
        for one in operations["get"].get("parameters", []):
            if one["in"] == "query":
                value = given.get(one["name"], one["schema"].get("default"))
                answer = client.get(path, params={one["name"]: value})
                assert answer.status_code in (200, 404), (path, one["name"], answer.text)


def test_a_parameter_that_is_given_twice_is_refused(client: TestClient) -> None:
    answer = client.get("/v1/datasets?limit=1&limit=2")
    assert answer.status_code == 422
    assert "'limit' is given twice" in answer.json()["detail"]


def test_pages_take_what_a_link_to_them_carries(client: TestClient) -> None:
    """They hold no answer that could be a wrong one."""
    for path in ("/?from=mail", "/docs?from=mail", "/assets/app.js?v=1"):
        assert client.get(path).status_code == 200


@pytest.mark.parametrize("path", [*PATHS, "/", "/docs", "/v1/datasets/none", "/nothing"])
def test_the_head_of_an_answer_is_that_of_the_whole(client: TestClient, path: str) -> None:
    """Probes and load balancers ask for it alone."""
    head, whole = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    kept = ("content-type", "etag", "vary", "cache-control", "x-content-type-options")
    for name in kept:
        assert head.headers.get(name) == whole.headers.get(name), name
