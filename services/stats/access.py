"""Who may ask: bearer tokens, of which only hashes stand in a file.

One token a line: `NAME ROLE[,ROLE] HASH`. A token is 256 random bits, so one round of SHA-256 hides
it: there is nothing to guess. The file is read again when it changed, so taking a line out of it
takes the token back within a few seconds.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.errors import FormatError, InvalidInputError, NotFoundError
from services.folders import writing

logger = logging.getLogger(__name__)

READ, SAMPLES = "read", "samples"
ROLES = (READ, SAMPLES)
"""`read`: everything but the rows themselves; `samples`: these, as ids and as pictures."""

_PREFIX = "seit_"  # so that scanners of repositories find one that was committed
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HASH = re.compile(r"[0-9a-f]{64}")
_LOOK_SECONDS = 2.0


@dataclass(frozen=True)
class Grant:
    """What one token allows."""

    name: str
    roles: frozenset[str]
    digest: str


def hash_token(token: str) -> str:
    """What of a token is kept: SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def new_token(file: Path, name: str, roles: Sequence[str]) -> str:
    """A new token, whose hash is added to the file; it is told this once and kept nowhere.

    Raises: InvalidInputError for a name that is not valid or taken, or an unknown role; StoreError
    where the file cannot be written, which is as it was then.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"token name {name!r} is not valid: use 1 to 63 of A-Z a-z 0-9 . _ -, the first a"
            " letter or digit"
        )
    unknown = [role for role in roles if role not in ROLES]
    if unknown or not roles:
        raise InvalidInputError(f"roles are {list(roles)}, valid are {' and '.join(ROLES)}")
    grants = read_grants(file) if file.exists() else []
    if name in {grant.name for grant in grants}:
        raise InvalidInputError(
            f"{file} has a token {name!r} already: take its line out first, or choose another name"
        )
    token = _PREFIX + secrets.token_urlsafe(32)
    stood = file.exists()
    # An editor may have left the last line without its end: what is added would be glued to it.
    begun = file.read_bytes()[-1:] not in (b"", b"\n") if stood else False
    line = "\n" * begun + f"{name} {','.join(sorted(set(roles)))} {hash_token(token)}\n"
    left = line.encode("ascii")
    with writing(file):
        handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(handle, "ab", buffering=0) as out:
            size = os.fstat(handle).st_size
            try:
                while left:
                    left = left[out.write(left) :]
            except OSError:  # half a line would keep the service from its next start
                out.truncate(size)
                if not stood:
                    file.unlink()
                raise
    return token


def read_grants(file: Path) -> list[Grant]:
    """The tokens of a file. Raises: NotFoundError; FormatError, which quotes no line."""
    try:
        lines = file.read_text("ascii").splitlines()
    except FileNotFoundError as error:
        raise NotFoundError(
            f"there is no file {file} of tokens: make one with `seit token`, or unset"
            " SEIT_STATS_TOKENS to let everyone read"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(
            f"{file} is not a readable file of tokens ({type(error).__name__})"
        ) from error
    grants = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match line.split():
            case [name, roles, digest] if (
                _NAME.fullmatch(name)
                and _HASH.fullmatch(digest)
                and set(roles.split(",")) <= set(ROLES)
            ):
                grants.append(Grant(name, frozenset(roles.split(",")), digest))
            case _:
                raise FormatError(
                    f"{file}, line {number}: expected NAME ROLE[,ROLE] HASH as `seit token` writes"
                    f" it, with roles of {', '.join(ROLES)}; nobody would be let in by it"
                )
    return grants


class Access:
    """The tokens of a file as they are now; without a file everyone may do everything.

    clock: seconds, monotonic.

    Raises: as `read_grants`, at the start. A file that breaks later leaves the last good one.
    """

    def __init__(self, file: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = file, clock
        self._lock = threading.Lock()
        self._looked_at = clock()
        self._state = self._stat()
        self._grants = read_grants(file) if file else []

    @property
    def open(self) -> bool:
        """Whether no token is asked for."""
        return self._file is None

    def grant(self, token: str) -> Grant | None:
        """What the token allows; None if it is not known. Its time says nothing about the token."""
        wanted, found = hash_token(token), None
        for grant in self._current():
            if hmac.compare_digest(grant.digest, wanted):
                found = grant
        return found

    def _current(self) -> Sequence[Grant]:
        with self._lock:
            now = self._clock()
            if self._file and now - self._looked_at >= _LOOK_SECONDS:
                self._looked_at = now
                state = self._stat()
                if state != self._state:
                    try:
                        self._grants, self._state = read_grants(self._file), state
                    except (FormatError, NotFoundError) as error:
                        logger.error("the tokens stay as they were: %s", error)
            return self._grants

    def _stat(self) -> tuple[int, int, int]:
        try:
            stat = os.stat(self._file) if self._file else None
        except OSError:
            stat = None
        return (stat.st_mtime_ns, stat.st_size, stat.st_ino) if stat else (0, 0, 0)
