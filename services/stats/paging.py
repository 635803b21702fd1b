"""Pages of a version's entries: a cursor names the version, so no commit in between moves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.errors import InvalidInputError


@dataclass(frozen=True)
class Page:
    """Up to `limit` entries of `version`, from position `start` of their order."""

    version: int
    start: int
    limit: int

    def cut(self, ordered: Any) -> tuple[Any, str]:
        """(the page's part of a sequence or array, cursor of the next page or "" at the end)."""
        end = self.start + self.limit
        return ordered[self.start : end], f"{self.version}.{end}" if end < len(ordered) else ""


def parse_cursor(text: str, version: int | None) -> tuple[int | None, int]:
    """(version, position) of a `next` that a page gave out; (version, 0) for an empty cursor.

    version: that the request asks for besides.

    Raises: InvalidInputError.
    """
    if not text:
        return version, 0
    begun, dot, start = text.partition(".")
    if not (dot and is_count(begun) and is_count(start)):
        raise InvalidInputError(
            f"cursor {text!r} is not one that this service gave out; start again without a cursor"
        )
    if version not in (None, int(begun)):
        raise InvalidInputError(
            f"cursor {text!r} belongs to version {begun}, the request asks for {version}: leave one"
            " of them out"
        )
    return int(begun), int(start)


def parse_number(text: str) -> int | None:
    """The number below which a page of versions begins; None for an empty cursor.

    Raises: InvalidInputError.
    """
    if text and not is_count(text):
        raise InvalidInputError(
            f"cursor {text!r} is not one that this service gave out; start again without a cursor"
        )
    return int(text) if text else None


def is_count(text: str) -> bool:
    """Whether these are the digits of a number from 0 to 2**63 - 1."""
    return text.isascii() and text.isdigit() and len(text) < 19


def names(entries: Sequence[str], most: int = 3) -> str:
    """The first few entries in words."""
    rest = len(entries) - most
    return ", ".join(entries[:most]) + (f" and {rest:,} more" if rest > 0 else "")
