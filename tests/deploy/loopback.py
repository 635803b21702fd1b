"""A server on loopback that answers anything and notes who asked for what, and a process that reads
one object with the settings of a test and no others, as a job on a node would.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BODY = b"tokens"
_READ = """
import sys
from services.errors import StoreError
from services.shards.retry import RetryPolicy
from services.shards.store import open_store
store = open_store(sys.argv[1], retry=RetryPolicy(attempts=1))
try:
    sys.stdout.write(store.read("object").decode())
except StoreError as error:
    sys.exit(str(error))
"""


@dataclass(frozen=True)
class Asked:
    """One request. key: the access key that signed it, or what stands in Authorization."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def key(self) -> str:
        said = self.headers.get("authorization", "")
        signed = re.search(r"Credential=([^/]+)/", said)
        return signed[1] if signed else said

    @property
    def plain_path(self) -> str:
        return self.path.partition("?")[0]


@dataclass
class Seen:
    """What the server was asked."""

    port: int = 0
    requests: list[Asked] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def of_objects(self) -> list[Asked]:
        return [one for one in self.requests if "bucket" in one.path]

    @property
    def keys(self) -> set[str]:
        return {one.key for one in self.of_objects()}


@contextmanager
def served(
    answers: Mapping[str, Any] | None = None,
    tls: tuple[Path, Path] | None = None,
    busy: int = 0,
) -> Iterator[Seen]:
    """answers: by the path's beginning; JSON, or bytes as they are. Everything else gets BODY.

    busy: the first requests, so many of them, get 503 instead.
    """
    seen = Seen()
    told = answers or {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, headers, self.rfile.read(length))
            seen.requests.append(asked)
            begun = [begin for begin in told if asked.path.startswith(begin)]
            body = told[max(begun, key=len)] if begun else BODY
            plain = isinstance(body, bytes)
            body = body if plain else json.dumps(body).encode()
            self.send_response(503 if len(seen.requests) <= busy else 200)
            self.send_header("Content-Type", "text/plain" if plain else "application/json")
            self.send_header("Metadata-Flavor", "Google")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    seen.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()


_PROVIDERS = ("AWS_", "GOOGLE_", "GCE_", "STORAGE_EMULATOR_HOST", "CLOUDSDK_")


def read(
    folder: Path, root: str = "s3://bucket/folder", **variables: str
) -> subprocess.CompletedProcess[str]:
    """A process that reads ROOT/object, at home in `folder`, with no settings but these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_PROVIDERS)}
    return subprocess.run(
        [sys.executable, "-c", _READ, root],
        env={**kept, "HOME": str(folder), **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
