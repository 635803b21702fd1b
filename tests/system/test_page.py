"""The pages in a real browser, headless: what a person finds, by eye, by keyboard, by ear."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from services.settings import load_settings
from services.shards.store import open_store
from services.stats.access import new_token
from services.stats.app import create_app
from services.stats.streams import open_runs
from tests.small_runs import write_run
from tests.stats.pictured import write_digits_dataset, write_runs

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no chromium: `apt-get install chromium` lets the pages be tested"
    ),
]
FLAGS = (
    "--no-sandbox",  # which containers do not allow
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
SIZES = ((1280, 900), (768, 1024), (360, 740))
PAGES = {"datasets": "#/", "digits": "#/datasets/digits", "streams": "#/streams"}


class Site:
    """A served root. url: of its page; folder: of the runs."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.runs = folder / "runs"
        settings = load_settings(
            {
                "SEIT_CACHE_DIR": str(folder / "cache"),
                "SEIT_STATS_FRESH_SECONDS": "0.2",
                **environment,
            }
        )
        root = open_store(str(folder / "data"))
        app = create_app(root, settings, open_runs([str(self.runs)]))
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started and self.thread.is_alive():
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}/"

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    write_digits_dataset(open_store(str(folder / "data")))
    write_runs(folder / "runs")
    return folder


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[Site]:
    site = Site(folder)
    yield site
    site.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: playwright.Browser, site: Site) -> Iterator[playwright.Page]:
    """A page that fails the test for any error in its console, or a word to another address."""
    context = browser.new_context()
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda told: wrong.append(told.text) if told.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda asked: (
            None if asked.url.startswith((site.url, "blob:")) else wrong.append(asked.url)
        ),
    )
    yield page
    context.close()
    assert wrong == []


def opened(page: playwright.Page, site: Site, name: str) -> playwright.Page:
    page.goto(site.url + PAGES[name])
    page.wait_for_selector(f'main[data-shown="{PAGES[name][1:]}"]')
    return page


PICTURES = "[...document.querySelectorAll('.gallery img')].map((one) => one.naturalWidth)"


def until(page: playwright.Page, expression: str, holds: Callable[[Any], bool]) -> Any:
    """The expression's value when it holds; Playwright's own wait needs an eval, which is off."""
    end = time.monotonic() + 30
    while not holds(value := page.evaluate(expression)):
        assert time.monotonic() < end, value
        page.wait_for_timeout(50)
    return value


def test_datasets_are_cards_that_say_how_big_and_what_is_wrong(
    page: playwright.Page, site: Site
) -> None:
    opened(page, site, "datasets")
    card = page.locator(".card", has_text="digits")
    assert "of the pixels' storage" in card.inner_text()
    assert "400" in card.inner_text()
    card.get_by_text("pictures that could not be read").wait_for()
    card.get_by_role("link", name="digits").click()
    page.get_by_role("heading", name="What is wrong").wait_for()


def test_a_dataset_shows_its_charts_shards_and_pictures(page: playwright.Page, site: Site) -> None:
    opened(page, site, "digits")
    for heading in ("Storage", "Versions", "Labels", "Codes", "Shards", "Samples"):
        assert page.get_by_role("heading", name=heading, exact=True).count() == 1
    assert page.get_by_text("classes without a row in train").count() == 1
    assert page.locator('svg[role="img"] title').count() >= 3
    shown = until(page, PICTURES, lambda widths: len(widths) >= 18 and 0 not in widths)
    assert set(shown) == {32}


def test_shards_are_sorted_and_filtered(page: playwright.Page, site: Site) -> None:
    opened(page, site, "digits")
    section = page.locator("section", has=page.get_by_role("heading", name="Shards", exact=True))
    rows = section.locator("tbody tr")
    playwright.expect(rows).to_have_count(4)
    section.get_by_label("split").select_option("validation")
    playwright.expect(rows).to_have_count(1)
    section.get_by_label("split").select_option("")
    section.get_by_label("order").select_option("rows")
    playwright.expect(rows.first).to_contain_text("validation")


def test_a_stream_s_curve_moves(page: playwright.Page, site: Site) -> None:
    write_run(site.runs / "mtm-base", world=2, steps=4)
    opened(page, site, "streams")
    card = page.locator(".card", has=page.get_by_role("heading", name="mtm-base"))
    assert "4 of 10" in card.inner_text()
    for steps in (6, 8):
        write_run(site.runs / "mtm-base", world=2, steps=steps)
        playwright.expect(card).to_contain_text(f"{steps} of 10", timeout=15_000)
    playwright.expect(card.locator("polyline")).to_have_count(1)
    assert "No Ray dashboard was named" in page.inner_text("main")


class Held:
    """Answers at a pattern of addresses, kept back until `let_go`."""

    def __init__(self, page: playwright.Page, pattern: str) -> None:
        self.page, self.kept, self.holds = page, list[playwright.Route](), True
        page.route(pattern, lambda one: self.kept.append(one) if self.holds else one.continue_())

    def wanted(self, count: int) -> None:
        """Wait until so many are kept back; the next ones pass."""
        until(self.page, str(count), lambda count: len(self.kept) >= count)
        self.holds = False

    def let_go(self) -> None:
        """Let the answers come, and the page do with them what it will."""
        for one in self.kept:
            with self.page.expect_response(one.request.url) as answer:
                one.continue_()
            answer.value.finished()
        self.page.evaluate("new Promise((then) => setTimeout(() => requestAnimationFrame(then)))")


@pytest.mark.parametrize(
    ("left", "asked", "late"),
    [("streams", "datasets", "**/v1/jobs?*"), ("datasets", "streams", "**/v1/datasets?*")],
)
def test_a_page_that_was_left_is_not_shown_over_the_next(
    page: playwright.Page, site: Site, left: str, asked: str, late: str
) -> None:
    held = Held(page, late)
    page.goto(site.url + PAGES[left])
    held.wanted(1)
    page.get_by_role("link", name=asked.capitalize(), exact=True).click()
    page.wait_for_selector(f'main[data-shown="{PAGES[asked][1:]}"]')
    held.let_go()
    assert page.locator("h1").inner_text() == asked.capitalize()
    assert page.get_attribute("main", "data-shown") == PAGES[asked][1:]


def test_the_shards_shown_are_those_chosen_last(page: playwright.Page, site: Site) -> None:
    opened(page, site, "digits")
    section = page.locator("section", has=page.get_by_role("heading", name="Shards", exact=True))
    rows = section.locator("tbody tr")
    playwright.expect(rows).to_have_count(4)
    held = Held(page, "**/shards?*split=train*")
    section.get_by_label("split").select_option("train")
    held.wanted(1)
    section.get_by_label("split").select_option("validation")
    playwright.expect(rows).to_have_count(1)
    held.let_go()
    playwright.expect(rows).to_have_count(1)
    playwright.expect(rows.first).to_contain_text("validation")


def test_an_address_that_is_none_is_told(browser: playwright.Browser, site: Site) -> None:
    page = browser.new_page()
    page.goto(site.url + "#/datasets/100%")
    playwright.expect(page.get_by_role("alert")).to_contain_text("'100%' is not valid")
    page.close()


def test_what_is_wrong_is_seen_without_scrolling(page: playwright.Page, site: Site) -> None:
    write_run(site.runs / "asleep")
    word = site.runs / "asleep/streams/rank-0.json"
    told = json.loads(word.read_text()) | {"updated": "2026-01-31T12:00:00+00:00"}
    word.write_text(json.dumps(told))
    page.set_viewport_size({"width": 1280, "height": 900})
    opened(page, site, "streams")
    first = page.locator("li.card").first  # though it began before the others
    playwright.expect(first).to_contain_text("asleep")
    playwright.expect(first).to_contain_text("stalled, silent for")
    opened(page, site, "digits")
    section = page.locator("section", has=page.get_by_role("heading", name="What is wrong"))
    gravest = section.locator("li").first
    playwright.expect(gravest).to_contain_text("bad: run asleep has said nothing for")
    place = gravest.bounding_box()
    assert place is not None
    assert place["y"] + place["height"] < 900
    # As a screen reader goes through it: by headings, lists, tables, and pictures with words.
    heard = page.locator("main").aria_snapshot()
    for words in (
        '- heading "digits" [level=1]',
        '- heading "What is wrong" [level=2]',
        '- region "By split"',
        '- img "Rows of the 10 largest classes"',
        '- combobox "order"',
    ):
        assert words in heard, heard


@pytest.mark.parametrize("name", PAGES)
def test_all_is_reached_by_keyboard_and_has_a_name(
    page: playwright.Page, site: Site, name: str
) -> None:
    opened(page, site, name)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    bare = page.evaluate(
        """[...document.querySelectorAll("a, button, input, select, img, svg")].filter((one) =>
        !(one.textContent.trim() || one.getAttribute("aria-label") || one.alt
          || one.labels?.length)).map((one) => one.outerHTML)"""
    )
    assert bare == []
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3')].map((one) => Number(one.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(below - level <= 1 for level, below in pairwise(levels))


CONTRAST = """() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (color) => {
    paint.clearRect(0, 0, 1, 1); paint.fillStyle = color; paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (node) => {
    for (let one = node; one; one = one.parentElement) {
      const color = rgb(getComputedStyle(one).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  return [...document.querySelectorAll("body *")].filter((one) => !one.closest("noscript")
      && [...one.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim())
      && one.getClientRects().length)
    .map((one) => {
      const style = getComputedStyle(one);
      const [a, b] = [light(rgb(one instanceof SVGElement ? style.fill : style.color)),
        light(behind(one))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), one.textContent.slice(0, 40)];
    }).filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}px")
def test_pages_fit_and_can_be_read(
    page: playwright.Page, site: Site, size: tuple[int, int], scheme: str
) -> None:
    """No sideways scrolling, and contrasts of WCAG 2.2 AA; pictures of it for who asks for them."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme=scheme)
    for name in PAGES:
        opened(page, site, name)
        page.wait_for_load_state("networkidle") if name != "streams" else None
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert page.evaluate(CONTRAST) == []
        if folder := os.environ.get("SEIT_TEST_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/{name}-{scheme}-{size[0]}.png", full_page=True)


def test_a_token_is_asked_for_and_kept(browser: playwright.Browser, folder: Path) -> None:
    token = new_token(folder / "tokens", "person", ["read", "samples"])
    site = Site(folder, SEIT_STATS_TOKENS=str(folder / "tokens"))
    try:
        page = browser.new_page()
        page.goto(site.url)
        page.get_by_label("asks for a token").fill("seit_\N{HORIZONTAL ELLIPSIS}")
        page.get_by_role("button", name="Go on").click()  # no header could carry it: not taken
        page.get_by_label("asks for a token").fill("wrong")
        page.get_by_role("button", name="Go on").click()
        page.get_by_role("alert").wait_for()
        page.get_by_label("asks for a token").fill(token)
        page.get_by_role("button", name="Go on").click()
        page.get_by_role("link", name="digits").click()
        until(page, PICTURES, any)
    finally:
        site.close()


def test_the_api_s_page_asks_for_a_token_and_sends_it(
    browser: playwright.Browser, folder: Path
) -> None:
    (folder / "api-tokens").unlink(missing_ok=True)
    token = new_token(folder / "api-tokens", "person", ["read", "samples"])
    site = Site(folder, SEIT_STATS_TOKENS=str(folder / "api-tokens"))
    context = browser.new_context()
    page = context.new_page()
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda one: asked.append(one.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    try:
        page.goto(site.url + "docs")
        for given in ("wrong", f" {token}\n"):  # with what a terminal adds to a word
            page.get_by_label("asks for a token").fill(given)
            page.get_by_role("button", name="Go on").click()
            if given == "wrong":
                page.get_by_role("alert").wait_for()
        section = page.locator("section", has=page.get_by_text("GET /v1/datasets", exact=True))
        section.get_by_role("button", name="Ask").click()
        playwright.expect(section.locator("pre")).to_contain_text('"name": "digits"')
        section.get_by_label("limit").fill("0")
        section.get_by_role("button", name="Ask").click()
        playwright.expect(section.locator("pre")).to_contain_text("422")
        page.reload()  # the token is kept for this tab, as by the other pages
        section.get_by_role("button", name="Ask").wait_for()
        picture = page.locator("section", has=page.get_by_role("heading", name="/picture"))
        for name, value in (("name", "digits"), ("split", "train"), ("row", "3")):
            picture.get_by_label(name, exact=False).first.fill(value)
        picture.get_by_role("button", name="Ask").click()
        playwright.expect(picture.locator("pre")).to_contain_text("200 image/png")
    finally:
        context.close()
        site.close()
    assert wrong == []
    assert not [url for url in asked if token in url]
