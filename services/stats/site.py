"""Pages for people: files of this package, with nothing from any other address.

They are at hand from the start and answered by the event loop, also while the storage hangs.
"""

from __future__ import annotations

from pathlib import Path

import xxhash
from fastapi import APIRouter, Request, Response

from services.errors import NotFoundError
from services.stats.answers import holds

router = APIRouter(include_in_schema=False)

_PAGES = Path(__file__).parent / "pages"
_MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def _read_pages() -> dict[str, tuple[bytes, str, str]]:
    """Name to (bytes, media type, tag) of every page: what is not among them is never opened."""
    return {
        path.name: (data, _MEDIA[path.suffix], f'W/"{xxhash.xxh3_128_hexdigest(data)}"')
        for path in sorted(_PAGES.iterdir())
        if path.suffix in _MEDIA and (data := path.read_bytes())
    }


_FILES = _read_pages()


@router.get("/")
async def index(request: Request) -> Response:
    """Datasets and streams, for people."""
    return _file(request, "index.html")


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The API for people: reads the OpenAPI document."""
    return _file(request, "api.html")


@router.get("/assets/{name}")
async def asset(request: Request, name: str) -> Response:
    """Styles and scripts of the pages."""
    return _file(request, name)


def _file(request: Request, name: str) -> Response:
    if name not in _FILES:
        raise NotFoundError(f"there is no page {name!r}")
    data, media, tag = _FILES[name]
    headers = {"etag": tag, "cache-control": "no-cache"}
    if holds(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media, headers=headers)
