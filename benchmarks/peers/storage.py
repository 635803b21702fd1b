"""An S3 server on loopback for one benchmark: started, filled, asked what it sent, stopped."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3  # type: ignore[import-untyped]

from peers.job import CREDENTIALS
from peers.process import BENCHMARKS

BUCKET = "bench"
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Server:
    """A running server. environment: by which libraries find it."""

    endpoint: str
    environment: dict[str, str]

    def sent_bytes(self) -> int:
        """Bytes of object bodies sent since the start."""
        with urllib.request.urlopen(f"{self.endpoint}/-sent", timeout=30) as answer:
            return int(answer.read())

    def upload(self, folder: Path, prefix: str) -> str:
        """Copy a folder below s3://bench/PREFIX, and return that URL."""
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
        )
        files = [path for path in folder.rglob("*") if path.is_file()]

        def put(path: Path) -> None:
            key = f"{prefix}/{path.relative_to(folder)}"
            body = path.read_bytes()
            client.put_object(Bucket=BUCKET, Key=key, Body=body, ACL="public-read")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(put, files))
        return f"s3://{BUCKET}/{prefix}"


@contextmanager
def server() -> Iterator[Server]:
    """A server with an empty public bucket, for the length of the context."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    variables = {
        "AWS_ENDPOINT_URL": endpoint,
        "S3_ENDPOINT_URL": endpoint,
        **CREDENTIALS,
    }
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "peers.s3_server", str(port)],
        cwd=BENCHMARKS,
        env={**os.environ, "MOTO_S3_ALLOW_CROSSACCOUNT_ACCESS": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        started = Server(endpoint, variables)
        _wait(started, child)
        request = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        yield started
    finally:
        child.terminate()
        child.wait(timeout=30)


def _wait(started: Server, child: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            started.sent_bytes()
            return
        except (urllib.error.URLError, ConnectionError) as error:
            if child.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the S3 server did not start: {error}") from error
            time.sleep(0.1)
