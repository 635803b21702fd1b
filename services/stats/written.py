"""A long message that is JSON already, so that nothing of it is made or checked for each answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

import betterproto2
import pydantic

M = TypeVar("M", bound=betterproto2.Message)


@dataclass(frozen=True)
class Written(Generic[M]):
    """A message of a kind. json: as `adapter(kind).dump_json` writes it."""

    kind: type[M]
    json: bytes

    def message(self) -> M:
        """The message itself."""
        found: M = adapter(self.kind).validate_json(self.json)
        return found


@cache
def adapter(kind: type[Any]) -> pydantic.TypeAdapter[Any]:
    """Of a message's type; to make one takes milliseconds."""
    return pydantic.TypeAdapter(kind)
