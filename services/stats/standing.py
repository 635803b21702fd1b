"""What stands below a root, as its folders are listed: datasets and the files of their versions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

from services.errors import InvalidInputError, NotFoundError, StoreError
from services.shards.manifest import VERSION_FILE, VERSIONS, is_private
from services.shards.store import Names, Store, refuse_missing
from services.shards.validate import check_name

logger = logging.getLogger(__name__)

Mark: TypeAlias = tuple[int, float]
"""Of a version's file: bytes, time of last change. A version never changes, but its dataset may be
removed and made anew under the same name: then its file is another."""

Versions: TypeAlias = dict[int, Mark]
"""Number to mark, oldest first; at least one."""

Key: TypeAlias = tuple[str, int, Mark]
"""One version of a dataset, as it stands."""


@dataclass(frozen=True)
class Listing:
    """What stands: versions of each dataset, sorted by name.

    stamps: a number for each dataset, which changes when its versions do.
    """

    versions: Mapping[str, Versions]
    stamps: Mapping[str, int] = field(compare=False)

    def holds(self, key: Key) -> bool:
        """Whether this version stands, and is the one it was."""
        name, number, mark = key
        return self.versions.get(name, {}).get(number) == mark


def newest(versions: Versions) -> int:
    """Number of the last one."""
    return next(reversed(versions))


def made_anew(before: Versions, now: Versions) -> bool:
    """Whether a version of one number is not the one it was."""
    return any(now.get(number, mark) != mark for number, mark in before.items())


def folders_of(store: Store, holds: str) -> Names:
    """Names of the folders directly below. holds: what it was given for, in words.

    Raises: StoreError, also for a folder of this machine that is gone: `seit serve` began with it,
    and a disk that nobody mounted again would look like one on which nothing stands.
    """
    names = store.folders()
    if not names:
        try:
            refuse_missing(store, holds)
        except NotFoundError as error:
            raise StoreError(
                f"the folder {store.url} is gone, so {holds} in it cannot be told of: mount or"
                " move it back, or start the service without it"
            ) from error
    return names


def list_all(root: Store, at_once: int) -> dict[str, Versions]:
    """Versions of every dataset below the root by name, of which `at_once` are listed at the same
    time; an empty folder is no dataset yet."""
    names = folders_of(root, "the datasets")
    with ThreadPoolExecutor(at_once, thread_name_prefix="seit-list") as pool:
        found = zip(names, pool.map(lambda name: _versions_of(root, name), names), strict=True)
        return {name: versions for name, versions in found if versions}


def _versions_of(root: Store, name: str) -> Versions:
    try:
        entries = root.child(check_name(name)).scan(VERSIONS)
    except InvalidInputError:
        return {}  # a folder of something else: its name is not a dataset's
    except StoreError as error:
        if not is_private(error):
            raise
        logger.info("left out, as it may be somebody's own folder: %s", error)
        return {}
    found = ((VERSION_FILE.fullmatch(entry.path), entry) for entry in entries)
    marks = {int(match[1]): (entry.bytes, entry.modified) for match, entry in found if match}
    return dict(sorted(marks.items()))
