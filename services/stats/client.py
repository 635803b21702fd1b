"""Typed client of the HTTP service, with nothing but the standard library underneath."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TypeVar
from urllib.parse import quote, urlencode, urlsplit

import pydantic

from services.errors import FormatError, InvalidInputError, NotFoundError, StoreError
from services.shards.validate import check_name
from services.stats.streams import check_run_name
from services.wire.seit import v1 as wire

T = TypeVar("T")


class StatsClient:
    """Asks the service at `url` (`http://host:port`) and gives back what `proto/` describes.

    timeout_seconds: longest wait for one answer.

    Every method raises NotFoundError for what does not stand, InvalidInputError for a name or a
    value that is not valid, StoreError where the service (or its storage) does not answer, and
    FormatError where something else answers at this address.
    """

    def __init__(self, url: str, timeout_seconds: float = 10.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InvalidInputError(
                f"{url!r} is not the address of a stats service: write http://HOST:PORT"
            )
        self._url, self._timeout = url.rstrip("/"), timeout_seconds

    def datasets(self) -> Iterator[wire.DatasetSummary]:
        """All datasets, by name."""
        cursor = ""
        while True:
            page = self._get(wire.DatasetList, "/v1/datasets", cursor=cursor)
            yield from page.datasets
            if not (cursor := page.next):
                return

    def dataset(self, name: str) -> wire.DatasetSummary:
        """The newest version of a dataset."""
        return self._get(wire.DatasetSummary, _path(name))

    def versions(self, name: str) -> Iterator[wire.DatasetSummary]:
        """Versions of a dataset, newest first."""
        cursor = ""
        while True:
            page = self._get(wire.DatasetList, _path(name) + "/versions", cursor=cursor)
            yield from page.datasets
            if not (cursor := page.next):
                return

    def shards(self, name: str, split: str | None = None) -> Iterator[wire.ShardInfo]:
        """Shards of the newest version, or of one split of it, in the order of the rows."""
        cursor = ""
        chosen = {} if split is None else {"split": split}
        while True:
            page = self._get(wire.ShardList, _path(name) + "/shards", cursor=cursor, **chosen)
            yield from page.shards
            if not (cursor := page.next):
                return

    def storage(self, name: str) -> wire.StorageReport:
        """What the newest version of a dataset takes."""
        return self._get(wire.StorageReport, _path(name) + "/storage")

    def streams(self, state: str | None = None) -> Iterator[wire.StreamInfo]:
        """Streams of all runs, or those in one state, newest first and without their ranks."""
        cursor = ""
        chosen = {} if state is None else {"state": state}
        while True:
            page = self._get(wire.StreamList, "/v1/streams", cursor=cursor, **chosen)
            yield from page.streams
            if not (cursor := page.next):
                return

    def stream(self, run: str) -> wire.StreamInfo:
        """One run's stream, with its ranks."""
        return self._get(wire.StreamInfo, "/v1/streams/" + quote(check_run_name(run), safe=""))

    def _get(self, kind: type[T], path: str, **query: str) -> T:
        url = self._url + path + (f"?{urlencode(query)}" if query else "")
        try:
            with urllib.request.urlopen(url, timeout=self._timeout) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            raise _refusal(url, error) from error
        except (OSError, http.client.HTTPException) as error:
            raise StoreError(
                f"{url} does not answer: {error}; check the address, and that `seit serve` runs"
            ) from error
        try:
            return pydantic.TypeAdapter(kind).validate_json(body)
        except ValueError as error:
            raise FormatError(
                f"{url} answered something that is not a {kind.__name__}: is it a stats service,"
                " and of this program's version?"
            ) from error


def _path(name: str) -> str:
    return "/v1/datasets/" + quote(check_name(name), safe="")


def _refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    """The service's own words, as the class of error that caused them there."""
    try:
        detail = pydantic.TypeAdapter(wire.Problem).validate_json(error.read()).detail
    except ValueError:
        detail = f"HTTP {error.code} {error.reason}; is this the address of a stats service?"
    kinds = {404: NotFoundError, 409: FormatError, 422: InvalidInputError}
    return kinds.get(error.code, StoreError)(f"{url}: {detail}")
