"""Captions among what stands with a picture: a text file, or a field of a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping

from services.sources.sample import clean_caption

MAX_TEXT_BYTES = 1 << 22
"""Largest file of text that is read for a caption."""

_JSON = "json"
_TEXTS = ("txt", "text", "caption", "cap")


class Fields:
    """Which file beside a picture, or which field of its JSON, is its caption.

    wanted: "txt" (or text, caption, cap) is the file of that extension where there is one, else
    the field of that name in the `.json`; any other name is a field of the `.json`. "" for none.
    """

    def __init__(self, wanted: str) -> None:
        self._wanted = wanted
        texts = (wanted,) if wanted in _TEXTS else ()
        self.extensions = (*texts, _JSON) if wanted else ()

    def caption(self, members: Mapping[str, bytes]) -> str:
        """The caption among files by extension; "" where it is missing or damaged."""
        if self._wanted in members:
            return clean_caption(members[self._wanted])
        if _JSON not in members:
            return ""
        try:
            described = json.loads(members[_JSON])
        except (ValueError, RecursionError):
            return ""
        value = described.get(self._wanted) if isinstance(described, dict) else None
        return clean_caption(value) if isinstance(value, str) else ""
