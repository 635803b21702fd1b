"""gcsfs as the store needs it: the plain JSON API, and every failure heard of at once.

gcsfs asks over gRPC what kind a bucket is before each use, and makes failed requests again by
itself. Here neither happens: the store's own retries are all there are. Zonal buckets, which gRPC
alone can write to, are not supported.
"""

from __future__ import annotations

from typing import Any

from gcsfs.core import GCSFileSystem
from gcsfs.retry import HttpError
from google.auth.exceptions import GoogleAuthError
from requests.exceptions import ProxyError

_request_once = GCSFileSystem._request.__wrapped__


class PlainGcs(GCSFileSystem):  # type: ignore[misc]
    """gcsfs's file system with one request a call, and errors that retry.py can tell apart."""

    async def _request(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await _request_once(self, *args, **kwargs)
        except ProxyError as error:  # its name for an answer of 502
            raise HttpError({"code": 502, "message": "Bad Gateway"}) from error
        except GoogleAuthError as error:
            if error.retryable:  # the server that gives tokens did not answer
                raise ConnectionError(f"no token: {error}") from error
            raise
