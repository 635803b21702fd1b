from __future__ import annotations

import errno

import pytest
from aiohttp import ClientPayloadError
from aiohttp.http_exceptions import ContentLengthError

from services.errors import InvalidInputError, NotFoundError, StoreError
from services.shards.retry import RetryCounter, RetryPolicy, http_status, is_transient

NOW = RetryPolicy(attempts=4, base_seconds=0.0)


class AnswerError(OSError):
    """As s3fs raises it: the server's answer hangs on the error."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(errno.EIO, code)
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


def _payload_error() -> Exception:
    error = ClientPayloadError("not completed")
    error.__cause__ = ContentLengthError("received 1 of 2 bytes")
    return error


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (AnswerError(500, "InternalError"), True),
        (AnswerError(503, "SlowDown"), True),
        (AnswerError(429, "TooMany"), True),
        (AnswerError(409, "ConditionalRequestConflict"), True),
        (AnswerError(400, "IncompleteBody"), True),
        (AnswerError(400, "Throttling"), True),
        (AnswerError(400, "IDPCommunicationError"), True),
        (AnswerError(403, "RequestThrottled"), True),
        (AnswerError(400, "InvalidRequest"), False),
        (AnswerError(403, "AccessDenied"), False),
        (AnswerError(404, "NoSuchKey"), False),
        (AnswerError(412, "PreconditionFailed"), False),
        (AnswerError(501, "NotImplemented"), False),
        (_payload_error(), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (TimeoutError(), True),
        (OSError(errno.ESTALE, "stale", "/nfs/x"), True),
        (OSError(errno.ENOSPC, "full", "/disk/x"), False),
        (PermissionError(errno.EACCES, "no", "/disk/x"), False),
        (ValueError("x"), False),
    ],
)
def test_what_deserves_another_try(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient


def test_status_is_found_behind_the_cause() -> None:
    outer = OSError("translated")
    outer.__cause__ = AnswerError(503, "SlowDown")
    assert http_status(outer) == 503
    assert http_status(_payload_error()) is None


def test_success_after_faults_is_counted() -> None:
    faults: list[Exception] = [TimeoutError(), AnswerError(500, "InternalError")]

    def action() -> str:
        if faults:
            raise faults.pop()
        return "done"

    counter = RetryCounter()
    assert NOW.call("read x", action, counter) == "done"
    assert counter.total == 2


def test_the_last_error_is_told() -> None:
    def action() -> None:
        raise AnswerError(503, "SlowDown")

    counter = RetryCounter()
    with pytest.raises(StoreError, match=r"read x: failed 4 times.*HTTP 503.*SlowDown"):
        NOW.call("read x", action, counter)
    assert counter.total == 3


def test_missing_is_its_own_error() -> None:
    def action() -> None:
        raise FileNotFoundError("x")

    with pytest.raises(NotFoundError):
        NOW.call("read x", action, RetryCounter())


def test_pauses_grow_to_a_cap_and_differ() -> None:
    policy = RetryPolicy(base_seconds=1.0, cap_seconds=4.0)
    for retry, bound in ((1, 1.0), (2, 2.0), (3, 4.0), (9, 4.0), (2000, 4.0)):
        pauses = [policy.pause_seconds(retry) for _ in range(200)]
        assert bound / 2 <= min(pauses) < bound * 0.6 < bound * 0.9 < max(pauses) <= bound


@pytest.mark.parametrize("values", [(0, 1.0, 1.0), (3, -1.0, 1.0), (3, 1.0, -1.0)])
def test_a_policy_checks_itself(values: tuple[int, float, float]) -> None:
    with pytest.raises(InvalidInputError, match="attempts"):
        RetryPolicy(*values)
