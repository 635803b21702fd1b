"""moto's S3 server as a process that counts what it sends: `python -m peers.s3_server PORT`.

GET /-sent answers with the bytes of all object bodies sent so far.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple


class Counting:
    """Passes requests on, and adds up the bodies of answers to GET."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._sent = 0

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/-sent":
            start("200 OK", [("Content-Type", "text/plain")])
            return [str(self._sent).encode()]
        answer = self._app(environ, start)
        return self._counted(answer) if environ["REQUEST_METHOD"] == "GET" else answer

    def _counted(self, answer: Iterable[bytes]) -> Iterator[bytes]:
        for piece in answer:
            with self._lock:
                self._sent += len(piece)
            yield piece


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    backend = DomainDispatcherApplication(create_backend_app)
    run_simple("127.0.0.1", int(sys.argv[1]), Counting(backend), threaded=True)
