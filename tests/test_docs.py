"""Pages name nothing of this repository that is not there."""

from __future__ import annotations

import pkgutil
import re
from functools import cache
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from services.stats import routes_datasets, routes_flows, routes_samples

ROOT = Path(__file__).resolve().parents[1]
ROOMS = "benchmarks|deploy|docs|proto|services|tests|trainers"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@cache
def anchors(page: Path) -> set[str]:
    """Names that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" not in target:
            found = (page.parent / path).resolve() if path else page
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), target


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)", (ROOT / "README.md").read_text()))
    assert linked == {page.name for page in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_the_text_are_there(page: Path) -> None:
    for named in re.findall(rf"`((?:{ROOMS})/[\w./-]*)", page.read_text()):
        assert (ROOT / named).exists() or "/NAME" in named, named


def test_names_of_modules_in_the_text_are_importable() -> None:
    for page in PAGES:
        for named in re.findall(r"`((?:services|trainers)(?:\.\w+)+)", page.read_text()):
            assert pkgutil.resolve_name(named), named


def test_what_make_is_asked_for_is_what_it_offers() -> None:
    offered = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        asked = re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)
        assert set(asked) <= offered, page.name


def test_each_picture_is_shown() -> None:
    text = "".join(page.read_text() for page in PAGES)
    shown = set(re.findall(r"images/([\w-]+\.png)\)", text))
    assert shown == {path.name for path in (ROOT / "docs/images").iterdir()}


def test_the_page_of_the_service_has_its_paths_and_its_alerts() -> None:
    page = (ROOT / "docs/stats.md").read_text()
    routers = (routes_datasets.router, routes_samples.router, routes_flows.router)
    paths = {
        route.path for router in routers for route in router.routes if isinstance(route, APIRoute)
    }
    told: set[str] = set()
    table = page[page.index("| path below `/v1` |") :].split("\n\n")[0]
    for line in table.splitlines()[2:]:
        for name in re.findall(r"`([^`]+)`", line.split("|")[1]):
            whole = name.replace("…/picture", "…/samples/SPLIT/ROW/picture")
            path = "/v1/" + whole.replace("…", "datasets/NAME")
            told.add(re.sub(r"/([A-Z]+)", lambda word: f"/{{{word[1].lower()}}}", path))
    assert told == paths
    rules = (ROOT / "deploy/prometheus/seit-alerts.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert re.findall(r"^\| (Seit\w+) \|", page, re.MULTILINE) == alerts
