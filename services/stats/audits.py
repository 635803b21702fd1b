"""What datasets' folders hold against what their versions name, looked at beside the requests."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor

from services.errors import SeitError
from services.shards.manifest import file_sizes, load_manifest
from services.shards.store import Store
from services.stats.apart import Work
from services.stats.growth import audit
from services.wire.seit import v1 as wire

logger = logging.getLogger(__name__)

_PAUSE = 3.0
"""Times as long as an audit took nothing is listed after it, as the answers need the cores more."""


class Audits:
    """The newest audit of each dataset's folder. Safe to share by threads.

    A listing takes a second for every few thousand files, and all versions are read for it: so an
    old one is made again when it was asked for, one dataset at a time, with pauses.

    work: on the root. versions: of a dataset, oldest first. seconds: that an audit serves.
    clock: seconds, monotonic.
    """

    def __init__(
        self,
        work: Work,
        versions: Callable[[str], Sequence[int]],
        seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._work, self._versions = work, versions
        self._seconds, self._clock = seconds, clock
        self._lock = threading.Lock()
        self._found: dict[str, tuple[float, wire.FolderAudit]] = {}
        self._made: dict[str, int] = {}
        self._running: set[str] = set()
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="seit-audit")

    def get(self, name: str) -> wire.FolderAudit | None:
        """The newest audit, None before the first. Never waits; one that is old is made again."""
        now = self._clock()
        with self._lock:
            at, found = self._found.get(name, (-math.inf, None))
            if now - at >= self._seconds and name not in self._running:
                with contextlib.suppress(RuntimeError):  # a service that ends begins no more
                    self._pool.submit(self._audit, name)
                    self._running.add(name)
        return found

    def stamp(self, name: str) -> int:
        """Changes with what is known of a folder, and when it is time to ask again."""
        with self._lock:
            at, _ = self._found.get(name, (-math.inf, None))
            return 2 * self._made.get(name, 0) + (self._clock() - at >= self._seconds)

    def forget_others(self, names: Container[str]) -> None:
        """Drop what is known of datasets that do not stand any more, or were made anew."""
        with self._lock:
            for name in [name for name in self._found if name not in names]:
                del self._found[name]

    def close(self) -> None:
        """Begin no other."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _audit(self, name: str) -> None:
        began, working = self._clock(), time.perf_counter()
        try:
            found = self._work(audit_folder, name, list(self._versions(name)), time.time())
            with self._lock:
                self._found[name] = began, found
                self._made[name] = self._made.get(name, 0) + 1
        except (SeitError, OSError) as error:
            logger.warning("the folder of %s is not compared with its versions: %s", name, error)
        finally:
            with self._lock:
                self._running.discard(name)
            self._closed.wait(_PAUSE * (time.perf_counter() - working))


def audit_folder(root: Store, name: str, versions: Sequence[int], now: float) -> wire.FolderAudit:
    """Read the versions, then list the folder. Raises: SeitError of the storage, or of a version
    that cannot be read."""
    named = [file_sizes(load_manifest(root, name, one).manifest) for one in versions]
    return audit(root.child(name).scan(), named, now)
