"""Who may ask, how often and how much; what never leaves."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from services.errors import FormatError, InvalidInputError, NotFoundError, StoreError
from services.settings import load_settings
from services.shards.store import Store
from services.stats.access import Access, new_token, read_grants
from services.stats.app import create_app
from services.stats.guard import Rates
from tests.small_datasets import write_dataset
from tests.small_disk import room_for


def client_of(root: Store, **environment: str) -> TestClient:
    write_dataset(root)
    return TestClient(create_app(root, load_settings(environment), []))


def bearer(token: str) -> Mapping[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_a_token_opens_what_its_roles_allow(root: Store, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    reader = new_token(file, "dashboard", ["read"])
    both = new_token(file, "engineer", ["read", "samples"])
    cache = str(tmp_path / "cache")
    with client_of(root, SEIT_STATS_TOKENS=str(file), SEIT_CACHE_DIR=cache) as client:
        for path in ("/v1/datasets", "/metrics", "/openapi.json", "/v1/none"):
            refused = client.get(path)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"].startswith("Bearer")
            assert refused.headers["content-type"] == "application/problem+json"
            assert client.get(path, headers=bearer(reader[:-1])).status_code == 401
            assert client.get(path, headers=bearer(reader)).status_code in (200, 404)
        for path in ("/", "/docs", "/healthz", "/readyz", "/assets/app.js"):
            assert client.get(path).status_code == 200
        rows = "/v1/datasets/digits/samples"
        assert client.get(rows, headers=bearer(reader)).status_code == 403
        assert client.get(rows, headers=bearer(both)).status_code == 200
        assert client.get(rows).status_code == 401  # though the answer is at hand


def test_what_is_called_samples_needs_no_other_role(root: Store, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    reader = bearer(new_token(file, "dashboard", ["read"]))
    write_dataset(root, "samples")
    with client_of(root, SEIT_STATS_TOKENS=str(file)) as client:
        for path in ("", "/health", "/shards"):
            assert client.get(f"/v1/datasets/samples{path}", headers=reader).status_code == 200
        assert client.get("/v1/streams/samples", headers=reader).status_code == 404
        for path in ("samples", "%73amples", "samples/", "samples/train/0", "samples%0A"):
            rows = f"/v1/datasets/samples/{path}"
            assert client.get(rows, headers=reader).status_code == 403


def test_a_file_holds_hashes_alone(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    token = new_token(file, "a", ["read"])
    assert token not in file.read_text()
    assert hashlib.sha256(token.encode()).hexdigest() in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    with pytest.raises(InvalidInputError, match="already"):
        new_token(file, "a", ["read"])
    with pytest.raises(InvalidInputError, match="valid are read and samples"):
        new_token(file, "b", ["admin"])


@pytest.mark.parametrize("stood", [True, False])
def test_a_full_disk_leaves_a_file_of_tokens_as_it_was(tmp_path: Path, stood: bool) -> None:
    """Half a line, which a nearly full one takes, would keep the service from its next start."""
    file = tmp_path / "tokens"
    before = b""
    if stood:
        new_token(file, "a", ["read"])
        before = file.read_bytes()
    with room_for(len(before) + 20), pytest.raises(StoreError, match="tokens cannot be written"):
        new_token(file, "b", ["read"])
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before] * stood
    new_token(file, "b", ["read"])
    assert [grant.name for grant in read_grants(file)] == ["a", "b"][not stood :]


@pytest.mark.parametrize("last", ["", "\n", "\n# a comment", "\n\n", "\r\n"])
def test_a_last_line_without_an_end_stays_a_line(tmp_path: Path, last: str) -> None:
    file = tmp_path / "tokens"
    first = new_token(file, "a", ["read"])
    file.write_bytes(file.read_bytes().rstrip(b"\n") + last.encode())
    second = new_token(file, "b", ["samples"])
    assert [grant.name for grant in read_grants(file)] == ["a", "b"]
    access = Access(file)
    assert [grant.name for token in (first, second) if (grant := access.grant(token))] == ["a", "b"]


def test_a_token_that_is_taken_out_stops(tmp_path: Path) -> None:
    file, now = tmp_path / "tokens", [0.0]
    token = new_token(file, "a", ["read"])
    access = Access(file, clock=lambda: now[0])
    assert access.grant(token)
    file.write_text("# nobody\n")
    now[0] = 5
    assert access.grant(token) is None
    late = new_token(file, "b", ["read"])
    now[0] = 10
    assert access.grant(late)
    file.write_text("what is this")
    now[0] = 15
    assert access.grant(late), "a broken file leaves the last good one"


def test_a_broken_file_is_refused_and_not_quoted(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    with pytest.raises(NotFoundError, match="seit token"):
        Access(file)
    file.write_text("a read secret-that-someone-put-here\n")
    with pytest.raises(FormatError, match="line 1") as caught:
        read_grants(file)
    assert "secret" not in str(caught.value)


@given(st.lists(st.floats(0, 3), max_size=200), st.integers(1, 50))
def test_no_client_asks_more_than_its_rate(waits: list[float], rate: int) -> None:
    now = [0.0]
    rates = Rates(rate, clock=lambda: now[0])
    allowed = 0
    for wait in waits:
        now[0] += wait
        allowed += rates.wait_seconds("a") == 0
        assert allowed <= rate * (2 + now[0]) + 1
    assert rates.wait_seconds("b") == 0, "one client's rate is not another's"


def test_too_many_requests_are_told_when_to_come_back(root: Store) -> None:
    with client_of(root, SEIT_STATS_RATE="2") as client:
        answers = [client.get("/v1/datasets") for _ in range(12)]
    refused = [one for one in answers if one.status_code == 429]
    assert len(refused) >= 4
    assert int(refused[0].headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"url": f"/v1/datasets?cursor={'a' * 9000}"}, 414),
        ({"url": "/v1/datasets", "headers": {"x": "a" * 40_000}}, 431),
        ({"url": "/v1/datasets", "content": b"body"}, 413),
    ],
)
def test_what_is_too_large_is_refused(root: Store, options: dict[str, object], status: int) -> None:
    with client_of(root) as client:
        answer = client.request("GET", **options)  # type: ignore[arg-type]
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/", "/docs", "/v1/datasets", "/v1/none", "/assets/none"])
def test_every_answer_keeps_browsers_to_itself(root: Store, path: str) -> None:
    with client_of(root) as client:
        headers = client.get(path, headers={"origin": "http://elsewhere"}).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert "access-control-allow-origin" not in headers


def test_secrets_are_not_told(
    root: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tokens"
    token = new_token(file, "a", ["read"])
    environment = {
        "SEIT_STATS_TOKENS": str(file),
        "SEIT_STATS_RAY": "http://127.0.0.1:9",
        "RAY_AUTH_TOKEN": "ray-secret",
    }
    assert "ray-secret" not in repr(load_settings(environment))
    with caplog.at_level(logging.DEBUG), client_of(root, **environment) as client:
        found = client.get("/v1/jobs", headers=bearer(token))
        refused = client.get("/v1/jobs", headers=bearer(token + "x"))
    cluster = json.loads(found.text)["cluster"]
    assert cluster["state"] == "unreachable"
    told = caplog.text + found.text + refused.text
    assert token not in told
    assert "ray-secret" not in told
