"""How a dataset's folder grew: what each version added, and what of the folder no version names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from services.shards.orphans import unnamed
from services.shards.store import Entry
from services.stats.facts import Facts
from services.stats.flows import rfc3339
from services.wire.seit import v1 as wire

ORPHAN_SECONDS = 3600.0
"""A file without a name that is younger may be one of a running ingest."""

_LISTED = 20  # names of missing files that are told


def version_storage(facts: Facts, before: Facts | None) -> wire.VersionStorage:
    """What a version adds to the one before it, and what both share."""
    mine = facts.file_sizes()
    theirs = before.file_sizes() if before else {}
    about, summary = facts.about, facts.summary
    return wire.VersionStorage(
        version=about.version,
        created=about.created,
        rows=summary.rows,
        shards=summary.shards,
        bytes=summary.bytes,
        file_bytes=sum(mine.values()),
        added_bytes=_total(mine, mine.keys() - theirs.keys()),
        shared_bytes=_total(mine, mine.keys() & theirs.keys()),
        dropped_bytes=_total(theirs, theirs.keys() - mine.keys()),
        message=about.message,
    )


def _total(sizes: Mapping[str, int], paths: Iterable[str]) -> int:
    return sum(sizes[path] for path in paths)


def audit(
    found: Sequence[Entry], versions: Iterable[Mapping[str, int]], now: float
) -> wire.FolderAudit:
    """A listing of the folder, `now` in Unix seconds, against the files that its versions name.

    versions: path to size of each version's files, oldest first, at least one. They were read
    before the folder was listed: a version's files stand before it does.
    """
    named: dict[str, int] = {}
    users: Counter[str] = Counter()
    newest: Mapping[str, int] = {}
    for newest in versions:
        named.update(newest)
        users.update(newest.keys())
    sizes = {entry.path: entry.bytes for entry in found}
    orphans = unnamed(found, named.keys(), min_age_seconds=ORPHAN_SECONDS, now=now)
    missing = sorted(path for path, size in newest.items() if sizes.get(path) != size)
    return wire.FolderAudit(
        listed=rfc3339(now),
        files=len(found),
        bytes=sum(sizes.values()),
        named_bytes=sum(named.values()),
        shared_bytes=_total(named, (path for path, count in users.items() if count > 1)),
        orphaned_bytes=sum(entry.bytes for entry in orphans),
        orphaned_files=len(orphans),
        missing_files=len(missing),
        missing=missing[:_LISTED],
    )
