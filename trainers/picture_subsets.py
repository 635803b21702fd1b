"""Parts of a folder's training pictures: which ones, and files that name them."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import xxhash

from services.errors import InvalidInputError
from services.pictures import Picture
from services.shards.store import absolute_url, open_store, read_url


def stratified(
    pictures: Sequence[Picture], share: float, order: Callable[[Picture], object]
) -> list[Picture]:
    """The first `share` of each class, at least one picture, by `order`; in the order given.

    Raises: InvalidInputError for a share outside of (0, 1].
    """
    if not 0 < share <= 1:
        raise InvalidInputError(f"a share of {share} of the pictures: valid are above 0 to 1")
    by_label: dict[int, list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_label[picture.label].append(picture)
    kept: set[str] = set()
    for alike in by_label.values():
        alike.sort(key=order)  # type: ignore[arg-type]
        count = max(1, math.floor(share * len(alike) + 0.5))
        kept.update(picture.key for picture in alike[:count])
    return [picture for picture in pictures if picture.key in kept]


def at_random(seed: int, purpose: str) -> Callable[[Picture], tuple[int, str]]:
    """An order by hash of (purpose, seed, key): with the same seed, smaller parts lie in larger."""

    def order(picture: Picture) -> tuple[int, str]:
        name = os.fsencode(f"{purpose}/{seed}/{picture.key}")  # which need not be valid UTF-8
        return xxhash.xxh3_64_intdigest(name), picture.key

    return order


def write_keys(path: Path, pictures: Iterable[Picture]) -> Path:
    """A file that `--pictures.keys` reads, one key a line; one that stands with it is left.

    Raises: InvalidInputError for a key that is no line.
    """
    keys = [os.fsencode(picture.key) for picture in pictures]
    if broken := [key for key in keys if b"\n" in key]:
        raise InvalidInputError(
            f"{os.fsdecode(broken[0])!r} has a line break in its name, and a list of keys has one"
            " key a line: rename the picture"
        )
    data = b"".join(key + b"\n" for key in keys)
    if not (path.is_file() and path.read_bytes() == data):
        open_store(absolute_url(str(path.parent))).write(path.name, data)
    return path


def read_keys(url: str) -> list[str]:
    """The keys of a file. Raises: NotFoundError; InvalidInputError where it names none."""
    keys = [os.fsdecode(line) for line in read_url(url).split(b"\n") if line.strip()]
    if not keys:
        raise InvalidInputError(
            f"{url} names no picture: nothing would be learned from; it should hold paths below the"
            " folder of pictures, one a line"
        )
    return keys


def chosen(pictures: Sequence[Picture], keys: Sequence[str], where: str) -> list[Picture]:
    """The pictures that `keys` name, in their own order.

    where: the keys' file, for messages. Raises: InvalidInputError for a key that none has.
    """
    wanted = set(keys)
    found = [picture for picture in pictures if picture.key in wanted]
    if len(found) < len(wanted):
        missing = min(wanted - {picture.key for picture in found})
        raise InvalidInputError(
            f"{where} names {missing!r}, which is no training picture of the folder ({len(found)}"
            f" of {len(wanted)} keys are): nothing was read; name pictures of its training split"
            f" as {pictures[0].key!r}"
        )
    return found
