"""A server that speaks Google Cloud Storage's JSON API, on loopback: gcp-storage-emulator.

It takes `ifGenerationMatch` for nothing, as a server without conditional writes does; so that
condition is held up here, as Google documents it: 0 asks for an object that does not exist yet,
and the answer is 412 where one does.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

BUCKET = "tests"


class ConditionNotMetError(Exception):
    """A conditional write met an object that stands already."""


class ConditionalStorage(Storage):  # type: ignore[misc]
    """The emulator's storage; `only_new` is whether the request at hand must make a new object."""

    only_new = False

    def check_new(self, bucket_name: str, file_name: str) -> None:
        if file_name in self.objects.get(bucket_name, {}):
            raise ConditionNotMetError

    def create_file(self, bucket_name: str, file_name: str, *rest: Any, **named: Any) -> None:
        if self.only_new:
            self.check_new(bucket_name, file_name)
        super().create_file(bucket_name, file_name, *rest, **named)


class Handler(RequestHandler):  # type: ignore[misc]
    """One request at a time, as the emulator itself answers them."""

    turn = threading.Lock()

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server asks for
        with self.turn:
            super().do_GET()

    def do_DELETE(self) -> None:  # noqa: N802 - the name that http.server asks for
        with self.turn:
            super().do_DELETE()

    def do_POST(self) -> None:  # noqa: N802 - the name that http.server asks for
        query = parse_qs(urlsplit(self.path).query)
        with self.turn:
            self.storage.only_new = query.get("ifGenerationMatch") == ["0"]
            try:
                if self.storage.only_new and "name" in query:  # the first request of several
                    self.storage.check_new(BUCKET, query["name"][0])
                super().do_POST()
            except ConditionNotMetError:
                self.refuse()

    def refuse(self) -> None:
        error = {"code": 412, "message": "At least one of the pre-conditions did not hold."}
        body = json.dumps({"error": error}).encode()
        self.send_response(412)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def gcs_server() -> Iterator[tuple[str, int]]:
    """Host and port of a fresh server with the bucket `BUCKET`; ends with the context."""
    storage = ConditionalStorage(use_memory_fs=True)
    create_bucket(BUCKET, storage)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, storage))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield "127.0.0.1", server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
