"""Who has which key to docker-compose.yml's store, and what each may do there.

The rights are those that deploy/compose/bucket.sh asks the store for: it is run, and moto, which
evaluates policies and compares signatures, gives them in the place of MinIO. What stands for
MinIO's client notes what it is asked.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from services.errors import StoreError
from services.settings import load_settings
from services.shards.parts import LARGE_BYTES
from services.shards.retry import RetryPolicy
from services.shards.store import Store, open_store
from services.stats.app import create_app
from tests.small_datasets import write_dataset
from tests.small_runs import write_run

ROOT = Path(__file__).resolve().parents[2]
_CLIENT = """#!{python}
import json, pathlib, sys
words = sys.argv[1:]
files = {{word: pathlib.Path(word).read_text() for word in words if word.endswith(".json")}}
lines = [] if words[0] == "mb" or "policy" in words else sys.stdin.read().split()
with open({notes!r}, "a") as notes:
    notes.write(json.dumps([words, lines, files]) + chr(10))
if words[:3] == ["admin", "user", "info"]:
    print("PolicyName: " + {has!r})
sys.exit("attach" in words and {fails!r})
"""
_KEYS = {"WRITER": "the-writer", "READER": "the-reader", "MINIO_ROOT_USER": "the-root"}


def keys_of(service: dict[str, Any]) -> set[str]:
    """Variables of the store's keys of which a container is given the value."""
    values = " ".join(str(value) for value in service.get("environment", {}).values())
    return set(re.findall(r"\$\{SEIT_STORE_(USER|PASSWORD|WRITER\w*|READER\w*)\b", values))


def test_each_container_has_the_least_key_that_it_needs() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    root, writer, reader = ({name, other} for name, other in (
        ("USER", "PASSWORD"), ("WRITER", "WRITER_PASSWORD"), ("READER", "READER_PASSWORD")
    ))  # fmt: skip
    expected = {"store": root, "bucket": root | writer | reader, "api": reader}
    expected |= dict.fromkeys(("head", "worker", "client"), writer)
    assert {name: keys for name, one in services.items() if (keys := keys_of(one))} == expected


def run_script(folder: Path, *, fails: bool = False, has: str = "") -> tuple[int, list[Any]]:
    """Exit code of the script, and (arguments, lines of standard input, files) of each call of the
    store's client.

    fails, has: whether it refuses to give rights, and which it says that users have.
    """
    notes = folder / "notes"
    client = folder / "mc"
    words = {"python": sys.executable, "notes": str(notes), "fails": fails, "has": has}
    client.write_text(_CLIENT.format(**words))
    client.chmod(0o755)
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["bucket"]
    script = folder / "bucket.sh"
    script.write_text(
        (ROOT / "deploy/compose/bucket.sh").read_text().replace("/tmp/", f"{folder}/")
    )
    known = {
        name.replace("_USER", "") + "_PASSWORD": f"{key}-secret" for name, key in _KEYS.items()
    }
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "BUCKET": "pics", **_KEYS, **known}
    assert environment.keys() - {"PATH"} | {"MC_CONFIG_DIR"} == service["environment"].keys() - {
        "<<"
    }
    command = [word.replace("/bucket.sh", str(script)) for word in service["entrypoint"]]
    ended = subprocess.run(command, env=environment)
    return ended.returncode, [json.loads(line) for line in notes.read_text().splitlines()]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What the store's client is asked."""
    code, calls = run_script(tmp_path_factory.mktemp("bucket"))
    assert code == 0
    return calls


@pytest.mark.parametrize(("has", "code"), [("seit-write,seit-read", 0), ("seit-write", 1), ("", 1)])
def test_rights_that_stand_already_are_no_error_and_others_are(
    tmp_path: Path, has: str, code: int
) -> None:
    assert run_script(tmp_path, fails=True, has=has)[0] == code


def test_no_secret_is_an_argument(asked: list[Any]) -> None:
    assert len(asked) == 8
    for words, _, files in asked:
        assert "-secret" not in json.dumps([words, files])


@pytest.fixture(scope="module")
def stores(asked: list[Any]) -> Iterator[dict[str, dict[str, Any]]]:
    """By the user: options of a store, on a server where each may do what the script gave it."""
    from moto import settings
    from moto.iam.models import iam_backends
    from moto.s3.models import s3_backends
    from moto.server import ThreadedMotoServer

    account = "123456789012"
    people, buckets = iam_backends[account]["aws"], s3_backends[account]["aws"]
    policies: dict[str, str] = {}
    for words, lines, files in asked:
        match words:
            case ["alias", "set", "store", "http://store:9000"]:
                assert lines == ["the-root", "the-root-secret"]
            case ["mb", "--ignore-existing", place]:
                buckets.create_bucket(place.removeprefix("store/"), "us-east-1")
            case ["admin", "policy", "create", "store", name, file]:
                policies[name] = files[file]
            case ["admin", "user", "add", "store"]:
                people.create_user("us-east-1", lines[0])
                key = people.create_access_key(lines[0])
                key.access_key_id, key.secret_access_key = lines
            case ["admin", "policy", "attach", "store", name, "--user", user_name]:
                people.put_user_policy(user_name, name, policies[name])
            case _:
                raise AssertionError(f"the store's client knows no {words}")
    buckets.create_bucket("other", "us-east-1")
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    before, settings.INITIAL_NO_AUTH_ACTION_COUNT = settings.INITIAL_NO_AUTH_ACTION_COUNT, 0
    try:
        yield {
            name: {
                "key": name,
                "secret": f"{name}-secret",
                "client_kwargs": {"endpoint_url": f"http://{host}:{port}"},
                "retry": RetryPolicy(attempts=1),
            }
            for name in ("the-writer", "the-reader")
        }
    finally:
        settings.INITIAL_NO_AUTH_ACTION_COUNT = before
        server.stop()


def test_a_job_writes_and_the_api_reads(stores: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    writer = open_store("s3://pics/datasets", **stores["the-writer"])
    write_dataset(writer, sole_writer=True)
    writer.write("large", bytes(LARGE_BYTES))  # in parts
    writer.delete("large")
    write_run(tmp_path / "mtm")
    runs = open_store("s3://pics/runs", **stores["the-writer"])
    local = open_store(str(tmp_path))
    for entry in local.scan():
        runs.write(entry.path, local.read(entry.path))
    reader = open_store("s3://pics/datasets", **stores["the-reader"])
    settings = load_settings({"SEIT_CACHE_DIR": str(tmp_path / "cache")})
    flows = open_store("s3://pics/runs", **stores["the-reader"])
    with TestClient(create_app(reader, settings, [flows])) as api:
        assert api.get("/readyz").status_code == 200
        for path in ("", "/digits", "/digits/shards", "/digits/storage", "/digits/samples"):
            assert api.get(f"/v1/datasets{path}").status_code == 200, path
        assert [one["name"] for one in api.get("/v1/streams").json()["streams"]] == ["mtm"]


def test_nobody_does_more(stores: dict[str, dict[str, Any]]) -> None:
    def at(user: str, place: str, **changed: str) -> Store:
        return open_store(f"s3://{place}", **{**stores[user], **changed})

    at("the-writer", "pics").write("kept", b"x")
    refused = (
        lambda: at("the-reader", "pics").write("new", b"x"),
        lambda: at("the-reader", "pics").create("new", b"x"),
        lambda: at("the-reader", "pics").delete("kept"),
        lambda: at("the-reader", "pics", secret="another").read("kept"),
        lambda: at("the-writer", "other").write("new", b"x"),
        lambda: at("the-writer", "other").scan(),
        lambda: at("the-reader", "other").scan(),
    )
    for number, ask in enumerate(refused):
        with pytest.raises(StoreError, match=r"(?i)denied|forbidden|signature"):
            pytest.fail(f"{number} was taken: {ask()}")
    assert at("the-reader", "pics").read("kept") == b"x"
