"""What is wrong with a dataset, or may be: findings for a person to look at. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from services.stats.content import code_counts, label_counts
from services.stats.facts import Facts
from services.stats.flows import STALLED, UNREADABLE
from services.stats.paging import names
from services.wire.seit import v1 as wire

SKEWED = 20.0
"""A largest class with more times the rows of the smallest is worth a warning."""
DEAD_SHARE = 0.2
"""A larger share of codes that no token has is worth a warning."""
REPEATED_SHARE = 0.01
"""A larger share of repeated grids is worth a warning."""

_ORDER = ("bad", "warning", "note")


def standing_findings(facts: Facts) -> list[wire.Finding]:
    """What the version alone tells, and so never changes."""
    return [*_rows(facts), *_labels(facts), *_codes(facts)]


def health_report(
    facts: Facts,
    standing: Iterable[wire.Finding],
    folder: wire.FolderAudit | None,
    streams: Iterable[wire.StreamInfo],
) -> wire.HealthReport:
    """Findings about a version, the gravest first.

    standing: what `standing_findings` tells of it. folder: of the dataset, where it has been
    listed. streams: with their ranks, of all runs.
    """
    found = [*_files(folder), *_flowing(facts, streams), *standing]
    found.sort(key=lambda one: _ORDER.index(one.severity))
    about = facts.about
    return wire.HealthReport(dataset=about.dataset, version=about.version, findings=found)


def _finding(severity: str, kind: str, count: int, text: str) -> wire.Finding:
    return wire.Finding(severity=severity, kind=kind, text=text, count=count)


def _files(folder: wire.FolderAudit | None) -> Iterator[wire.Finding]:
    if folder is None:
        return
    if folder.missing_files:
        paths = names(folder.missing)
        text = f"files missing, or of another size: {folder.missing_files:,} ({paths})"
        yield _finding("bad", "shards", folder.missing_files, text)
    if folder.orphaned_files:
        share = folder.orphaned_bytes / folder.bytes
        text = (
            f"files that no version names: {folder.orphaned_files:,}, {share:.1%} of the folder;"
            " `seit gc` removes them"
        )
        severity = "warning" if share > 0.1 else "note"
        yield _finding(severity, "storage", folder.orphaned_files, text)


def _flowing(facts: Facts, streams: Iterable[wire.StreamInfo]) -> Iterator[wire.Finding]:
    prefix = f"{facts.about.dataset}/"
    left_out: set[str] = set()
    for stream in streams:
        if not any(one.startswith(prefix) for one in stream.stream.split("+")):
            continue
        left_out |= {one for rank in stream.ranks if rank.flow for one in rank.flow.quarantined}
        if stream.state == STALLED:
            text = f"run {stream.name} has said nothing for {stream.silent_seconds:,.0f} s"
            yield _finding("bad", "stream", 1, text)
        elif stream.state == "failed":
            yield _finding("warning", "stream", 1, f"run {stream.name} failed")
        elif stream.state == UNREADABLE:
            text = f"run {stream.name} cannot be read: {stream.reason}"
            yield _finding("warning", "stream", 1, text)
    damaged = _among(facts.shards.paths, left_out)
    if damaged:
        text = f"damaged shards that runs left out: {len(damaged):,} ({names(damaged)})"
        yield _finding("bad", "shards", len(damaged), text)


def _among(paths: Sequence[str], left_out: Collection[str]) -> list[str]:
    """The paths that names of files end with, sorted; found without comparing each with each."""
    if not left_out:
        return []
    known = set(paths)
    ends = {
        "/".join(name.rsplit("/", parts)[-parts:])
        for parts in {path.count("/") + 1 for path in known}
        for name in left_out
    }
    return sorted(known & ends)


def _rows(facts: Facts) -> Iterator[wire.Finding]:
    manifest, total = facts.about, facts.storage.total
    empty = [split.split for split in facts.storage.splits if not split.rows]
    if empty:
        text = f"splits without a row: {len(empty)} ({names(empty)})"
        yield _finding("warning", "rows", len(empty), text)
    if manifest.skipped:
        paths = names([one.path for one in manifest.skipped])
        many = len(manifest.skipped)
        text = f"pictures that could not be read and were left out: {many:,} ({paths})"
        yield _finding("warning", "pictures", many, text)
    assert total is not None  # `storage_report` always adds the splits up
    if total.duplicate_rows:
        share = total.duplicate_rows / total.rows
        severity = "warning" if share > REPEATED_SHARE else "note"
        text = (
            "rows whose whole grid another row has before them:"
            f" {total.duplicate_rows:,} ({share:.2%})"
        )
        yield _finding(severity, "rows", total.duplicate_rows, text)


def _labels(facts: Facts) -> Iterator[wire.Finding]:
    splits, classes = facts.about.splits, facts.about.classes
    for split in splits:
        counts = label_counts(facts, split.name)
        known = counts[1:]
        used = known[known > 0]
        rows, bare = int(counts.sum()), int(counts[0])
        if 0 < bare < rows:
            text = f"rows of {split.name} without a label: {bare:,} ({bare / rows:.1%})"
            yield _finding("warning", "labels", bare, text)
        if len(used) and len(used) < len(known) and split is splits[0]:
            empty = (known == 0).nonzero()[0].tolist()
            some = names([classes[one] or str(one) for one in empty])
            text = f"classes without a row in {split.name}: {len(empty):,} ({some})"
            yield _finding("warning", "labels", len(empty), text)
        if len(used) > 1 and used.max() / used.min() > SKEWED:
            few, many = int(used.min()), int(used.max())
            text = (
                f"labels of {split.name} are skewed: {many:,} rows of the largest class,"
                f" {few:,} of the smallest"
            )
            yield _finding("warning", "labels", len(used), text)


def _codes(facts: Facts) -> Iterator[wire.Finding]:
    counts = code_counts(facts, None)
    dead = int((counts == 0).sum())
    if dead and counts.sum():
        share = dead / len(counts)
        severity = "warning" if share > DEAD_SHARE else "note"
        text = f"dead codes, which no token has: {dead:,} of {len(counts):,} ({share:.0%})"
        yield _finding(severity, "codes", dead, text)
