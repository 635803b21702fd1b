"""OpenStack Swift with its S3 API on loopback: a durable S3 server that checks what it is sent.

It is not among the project's requirements. `python -m venv X && X/bin/pip install -r
deploy/proof/swift.lock` (123 MB) makes an environment for it, and `SEIT_TEST_SWIFT=X/bin/python`
lets the tests of the token store run against it in place of moto. How it is set up, and what is
done so that of conditional writes that meet one succeeds, stands in deploy/proof/swift_store.py.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

KEY, SECRET = "test:tester", "testing"
_PROGRAM = Path(__file__).resolve().parents[2] / "deploy/proof/swift_store.py"
_START_SECONDS = 30.0


@contextlib.contextmanager
def swift_server(python: str, folder: Path) -> Iterator[tuple[str, int]]:
    """Host and port of a fresh server whose files stand in `folder`; ends with the context."""
    host, port = "127.0.0.1", _free_port()
    log = folder / "log"
    with log.open("wb") as said:
        server = subprocess.Popen(
            [python, _PROGRAM, folder, host, str(port), "--attached"],
            env={**os.environ, "MINIO_ROOT_USER": KEY, "MINIO_ROOT_PASSWORD": SECRET},
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
        )
    try:
        _await(host, port, log)
        yield host, port
    finally:
        server.terminate()
        server.communicate(timeout=30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await(host: str, port: int, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        connection = http.client.HTTPConnection(host, port, timeout=1)
        with contextlib.suppress(OSError):
            connection.request("GET", "/healthcheck")
            if connection.getresponse().status == 200:
                return
        connection.close()
        time.sleep(0.1)
    said = log.read_text(errors="replace")
    raise AssertionError(f"Swift does not answer after {_START_SECONDS} s: {said}")
