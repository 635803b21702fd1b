"""Prometheus as docker-compose.yml starts and configures it, against a service with tokens and one
without: a real Prometheus, on this machine instead of in a container.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
import yaml

from services.cli import listening
from services.settings import load_settings
from services.shards.store import open_store
from services.stats.access import new_token
from services.stats.app import create_app

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="no prometheus: `apt-get install prometheus` lets the scraping be tested",
    ),
]


@contextmanager
def served(folder: Path, **environment: str) -> Iterator[str]:
    """HOST:PORT of a service over an empty root."""
    app = create_app(open_store(str(folder)), load_settings(environment), [])
    sockets = listening("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, args=(sockets,))
    thread.start()
    try:
        yield f"127.0.0.1:{sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def scraping(folder: Path, target: str, token: str) -> Iterator[str]:
    """URL of a Prometheus that looks at `target`, begun by the compose file's own words."""
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["prometheus"]
    config = (ROOT / "deploy/compose/prometheus.yml").read_text()
    (folder / "prometheus.yml").write_text(
        config.replace("api:8000", target)
        .replace("/run/seit", str(folder))
        .replace("/etc/prometheus/rules", str(ROOT / "deploy/prometheus"))
        .replace("_interval: 10s", "_interval: 1s")
    )
    port = listening("127.0.0.1", 0)[0]
    address = f"127.0.0.1:{port.getsockname()[1]}"
    port.close()
    shell = [
        word.replace("$$", "$").replace("/run/seit", str(folder)) for word in service["entrypoint"]
    ]
    bounds = [word for word in service["command"] if word.startswith("--storage.tsdb.retention")]
    assert {word.partition("=")[0].rpartition(".")[2] for word in bounds} == {"time", "size"}
    options = (
        *(re.sub(r"\$\{\w+:-(\w+)\}", r"\1", word) for word in bounds),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
    )
    known = {"PATH": os.environ["PATH"], "SEIT_PROMETHEUS_TOKEN": token}
    assert service["environment"].keys() == known.keys() - {"PATH"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*shell, *options], env=known, stdout=log, stderr=log)
    try:
        yield f"http://{address}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


def health(prometheus: str) -> tuple[str, str]:
    """(health of the service as a target once it was scraped, the last error)."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{prometheus}/api/v1/targets", timeout=5) as answer:
                targets = json.load(answer)["data"]["activeTargets"]
        except OSError:  # it has only just been started
            targets = []
        for one in targets:
            if one["labels"]["job"] == "seit" and one["health"] != "unknown":
                return one["health"], one["lastError"]
        time.sleep(0.1)
    raise AssertionError("the service was never scraped")


@pytest.mark.parametrize("tokens", [False, True], ids=["open", "with tokens"])
def test_the_service_is_scraped(tmp_path: Path, tokens: bool) -> None:
    file = tmp_path / "tokens"
    token = new_token(file, "prometheus", ["read"]) if tokens else ""
    environment = {"SEIT_STATS_TOKENS": str(file)} if tokens else {}
    with (
        served(tmp_path / "data", **environment) as target,
        scraping(tmp_path, target, token) as prometheus,
    ):
        assert health(prometheus) == ("up", "")
    if tokens:
        assert (tmp_path / "token").stat().st_mode & 0o077 == 0


def test_without_its_token_it_is_told_so(tmp_path: Path) -> None:
    new_token(tmp_path / "tokens", "prometheus", ["read"])
    with (
        served(tmp_path / "data", SEIT_STATS_TOKENS=str(tmp_path / "tokens")) as target,
        scraping(tmp_path, target, "") as prometheus,
    ):
        state, error = health(prometheus)
    assert state == "down"
    assert "401" in error
