"""The pages behind a proxy that has them below a path of its own, and cuts it off."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from services.shards.store import open_store
from tests.stats.pictured import write_digits_dataset, write_runs
from tests.system.test_page import CHROMIUM, FLAGS, PICTURES, Site, playwright, pytestmark, until

__all__ = ["pytestmark"]

BELOW = "/under/this/"


@contextmanager
def proxy(to: str) -> Iterator[str]:
    """Where a proxy answers what `to` does, without the path that it stands at."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(BELOW):
                self.send_error(404)
                return
            asked = urllib.request.Request(
                to + self.path.removeprefix(BELOW), headers=dict(self.headers)
            )
            try:
                answer = urllib.request.urlopen(asked, timeout=60)
            except urllib.error.HTTPError as error:
                answer = error
            with answer:
                body = answer.read()
            self.send_response(answer.status)
            for name in ("content-type", "content-encoding", "content-security-policy"):
                if answer.headers[name]:
                    self.send_header(name, answer.headers[name])
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{BELOW}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_pages_work_below_a_path_of_a_proxy(tmp_path: Path) -> None:
    write_digits_dataset(open_store(str(tmp_path / "data")))
    write_runs(tmp_path / "runs")
    site = Site(tmp_path)
    wrong: list[str] = []
    try:
        with proxy(site.url) as url, playwright.sync_playwright() as started:
            browser = started.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
            page = browser.new_page()
            page.on("response", lambda one: wrong.append(one.url) if one.status >= 400 else None)
            page.goto(url)
            page.get_by_role("link", name="digits").click()
            until(page, PICTURES, lambda widths: len(widths) >= 18 and 0 not in widths)
            page.get_by_role("link", name="Streams").click()
            page.get_by_role("heading", name="mtm-base").wait_for()
            assert page.locator('nav a[aria-current="page"]').inner_text() == "Streams"
            page.get_by_role("link", name="API").click()
            section = page.locator("section", has=page.get_by_text("GET /v1/datasets", exact=True))
            section.get_by_role("button", name="Ask").click()
            playwright.expect(section.locator("pre")).to_contain_text('"name": "digits"')
            browser.close()
    finally:
        site.close()
    assert wrong == []
