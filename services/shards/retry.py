"""Bounded retries with jittered back-off, on the errors that a second try can mend.

Object stores answer 500, 503 or "SlowDown" under load, reset connections and stall; those pass.
A wrong key (403), a missing object (404) or a malformed request does not, and is raised at once.
"""

from __future__ import annotations

import errno
import functools
import http.client
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from services.errors import InvalidInputError, NotFoundError, SeitError, StoreError
from services.shards.tally import note

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TRANSIENT_STATUS = {408, 409, 425, 429, 500, 502, 503, 504, 509}
# 409 is S3's ConditionalRequestConflict: two conditional puts met, and one has to come again.
_TRANSIENT_CODES = {
    "SlowDown",
    "RequestTimeout",
    "InternalError",
    "ServiceUnavailable",
    "IncompleteBody",  # these three: what arrived at the server is not what was sent
    "BadDigest",
    "XAmzContentSHA256Mismatch",
    "Throttling",  # these, with a status that says otherwise: of the service that gives out roles
    "ThrottlingException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "IDPCommunicationError",
}
_TRANSIENT_ERRNO = {errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.ENETUNREACH}
EXISTS_STATUS = 412
"""Precondition failed: the object that a conditional put wanted to create stands already."""


@functools.cache
def _transient_types() -> tuple[type[BaseException], ...]:
    # Imported late: a user of plain paths never pays for loading the S3 libraries.
    import aiohttp
    from botocore.exceptions import (  # type: ignore[import-untyped]
        ConnectionError as EndpointError,
    )
    from botocore.exceptions import FlexibleChecksumError, HTTPClientError
    from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

    return (
        ConnectionError,
        TimeoutError,
        http.client.IncompleteRead,
        aiohttp.ClientError,
        EndpointError,
        FlexibleChecksumError,  # the body that arrived is not the one that was sent
        HTTPClientError,
        ResponseParserError,
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it (s3fs keeps the server's answer as the cause)."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def http_status(error: BaseException) -> int | None:
    """HTTP status of a failed request, None where the error does not come from an answer."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(status, int):
                return status
        # aiohttp has `status`; its broken-body errors also carry a made-up `code` of 400, which
        # no server sent. gcsfs has `code`.
        name = "status" if type(one).__module__.startswith("aiohttp") else "code"
        status = getattr(one, name, None)
        if isinstance(status, int) and 100 <= status < 600:
            return status
    return None


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed a moment later."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict) and response.get("Error", {}).get("Code") in _TRANSIENT_CODES:
            return True
    status = http_status(error)
    if status is not None and status >= 400:
        return status in _TRANSIENT_STATUS
    if any(isinstance(one, OSError) and one.errno in _TRANSIENT_ERRNO for one in _chain(error)):
        return True
    if any(isinstance(one, OSError) and one.filename is not None for one in _chain(error)):
        return False  # an answer of this machine's file system
    return any(isinstance(one, _transient_types()) for one in _chain(error))


@dataclass
class RetryCounter:
    """Retries made so far; shared by a store and its children, safe to use from many threads."""

    total: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self) -> None:
        with self._lock:
            self.total += 1


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how soon a failed request is made again.

    attempts: tries in all, the first one included, at least 1.
    base_seconds: upper bound of the first pause; it doubles with each further one.
    cap_seconds: upper bound of any pause.

    Each pause is uniform between half of its bound and all of it, so that many workers refused at
    the same moment do not come back at the same moment. As it stands, a storage may be out for
    half a minute without anyone above noticing more than the wait.
    """

    attempts: int = 12
    base_seconds: float = 0.2
    cap_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.base_seconds < 0 or self.cap_seconds < 0:
            raise InvalidInputError(
                f"retry policy {self}: attempts must be at least 1 and both times at least 0 "
                "seconds; nothing could be read otherwise"
            )

    def pause_seconds(self, retry: int) -> float:
        """Length of the pause before the given retry (counted from 1)."""
        bound = min(self.cap_seconds, self.base_seconds * 2.0 ** min(retry - 1, 60))
        return random.uniform(bound / 2, bound)

    def call(self, what: str, action: Callable[[], T], counter: RetryCounter) -> T:
        """Run `action`, again after a transient error; `what` names it in messages.

        Raises NotFoundError for what does not exist, StoreError once the attempts are used up or
        where another try would not help.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                return action()
            except SeitError:
                raise
            except FileNotFoundError as error:
                raise NotFoundError(f"{what}: no such file ({error})") from error
            except IsADirectoryError as error:
                raise StoreError(
                    f"{what}: is a folder, where a file was expected: give the path of a file in it"
                ) from error
            except Exception as error:
                if not is_transient(error):
                    raise StoreError(
                        f"{what}: refused: {describe(error)}; another try would not help: check "
                        "the address, the credentials, the permissions and the space left"
                    ) from error
                if attempt == self.attempts:
                    raise StoreError(
                        f"{what}: failed {attempt} times, last: {describe(error)}; the storage is "
                        "overloaded or unreachable: try again later"
                    ) from error
                counter.add()
                note(retries=1)
                pause = self.pause_seconds(attempt)
                logger.warning(
                    "%s: %s; retry %d of %d in %.2f s",
                    what,
                    describe(error),
                    attempt,
                    self.attempts - 1,
                    pause,
                )
                time.sleep(pause)
        raise AssertionError("unreachable: the last attempt returns or raises")


def describe(error: BaseException) -> str:
    """One line about an error: its type, the HTTP status if there is one, its text."""
    status = http_status(error)
    kind = type(error).__name__ + (f" (HTTP {status})" if status is not None else "")
    text = " ".join(str(error).split())
    return f"{kind}: {text}" if text else kind
