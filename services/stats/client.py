"""Typed client of the HTTP service, with nothing but the standard library underneath."""

from __future__ import annotations

import http.client
import os
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

    timeout_seconds: longest wait for one answer. token: where the service asks for one; None for
    that of SEIT_STATS_TOKEN. It is sent to this address only, never on to another.

    Every method raises NotFoundError for what does not stand, InvalidInputError for a name or a
    value that is not valid, StoreError where the service (or its storage) does not answer, and
    FormatError where something else answers at this address.
    """

    def __init__(self, url: str, timeout_seconds: float = 10.0, token: str | None = None) -> None:
        self._url, self._timeout = _address(url), timeout_seconds
        self._token = _sendable(os.environ.get("SEIT_STATS_TOKEN", "") if token is None else token)

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

    def shards(
        self, name: str, split: str | None = None, sort: str = "row"
    ) -> Iterator[wire.ShardInfo]:
        """Shards of the newest version, or of one split of it, by default in the rows' order."""
        cursor = ""
        chosen = {"sort": sort} if split is None else {"sort": sort, "split": split}
        while True:
            page = self._get(wire.ShardList, _path(name) + "/shards", cursor=cursor, **chosen)
            yield from page.shards
            if not (cursor := page.next):
                return

    def storage(self, name: str) -> wire.StorageReport:
        """What the newest version of a dataset takes."""
        return self._get(wire.StorageReport, _path(name) + "/storage")

    def growth(self, name: str) -> Iterator[wire.VersionStorage]:
        """What each version added, newest first."""
        cursor = ""
        while True:
            page = self._get(wire.GrowthReport, _path(name) + "/growth", cursor=cursor)
            yield from page.versions
            if not (cursor := page.next):
                return

    def labels(self, name: str, limit: int = 100) -> wire.LabelReport:
        """The `limit` largest classes of the newest version, and how evenly rows are spread."""
        return self._get(wire.LabelReport, _path(name) + "/labels", limit=str(limit))

    def codes(self, name: str, limit: int = 100) -> wire.CodeReport:
        """The `limit` most frequent codes of the newest version, and how many are used."""
        return self._get(wire.CodeReport, _path(name) + "/codes", limit=str(limit))

    def health(self, name: str) -> wire.HealthReport:
        """What is wrong with the newest version, the gravest first."""
        return self._get(wire.HealthReport, _path(name) + "/health")

    def sample(self, name: str, split: str, row: int) -> wire.Sample:
        """One row of the newest version, with its ids."""
        return self._get(wire.Sample, f"{_path(name)}/samples/{check_name(split, 'split')}/{row:d}")

    def jobs(self) -> wire.JobList:
        """The newest jobs of the Ray cluster, and whether it is reached."""
        return self._get(wire.JobList, "/v1/jobs")

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
        request = urllib.request.Request(url)
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            raise _refusal(url, error) from error
        # UnicodeError: what cannot be the name of a host
        except (OSError, http.client.HTTPException, UnicodeError) as error:
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


def _address(url: str) -> str:
    """The address without a last slash. Raises: InvalidInputError."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        url.encode("ascii")  # other names of hosts are written in their ASCII form
    except ValueError:
        sound = False
    if not sound or not url.isprintable() or " " in url:
        raise InvalidInputError(
            f"{url!r} is not the address of a stats service: write http://HOST:PORT"
        )
    return url.rstrip("/")


def _sendable(token: str) -> str:
    """The token without what a file or a shell left around it. Raises: InvalidInputError."""
    token = token.strip()
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise InvalidInputError(
            "the token (SEIT_STATS_TOKEN) holds spaces, line ends or other characters that none"
            " has: give the one word that `seit token` has shown"
        )
    return token


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
