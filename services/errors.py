"""Errors that a user can act on. Leaf module: imports nothing inside the project.

Each message names the offending value, the valid range, the consequence and the remedy.
Commands turn a `SeitError` into exit code 2 (1 for failed verification), HTTP into a 4xx.
"""

from __future__ import annotations


class SeitError(Exception):
    """Base of everything that the project raises on purpose."""


class InvalidInputError(SeitError, ValueError):
    """A value given by the user is outside its valid range."""


class NotFoundError(SeitError, LookupError):
    """A dataset, version, split, shard or file that was asked for does not exist."""


class FormatError(SeitError):
    """A file is not what its name promises: wrong magic, newer version, wrong types or sizes."""


class IntegrityError(SeitError):
    """Bytes on storage differ from what the manifest says (checksum or size)."""


class CommitConflictError(SeitError):
    """Another writer committed the same version first; nothing was overwritten."""


class StoreError(SeitError):
    """The storage did not answer, or refused, after all retries that make sense."""


class CursorMismatchError(SeitError):
    """A stream position belongs to other data, or to another order, than the stream at hand."""


class CapacityError(SeitError):
    """The cluster cannot place what was asked for; said at the start rather than as a hang."""
