"""What the command line shows, as rich renderables; `services.cli` prints them.

Names, messages and reasons come from files that others wrote: they are shown as plain text, never
read as markup, and control characters do not reach the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from services.cli_show import table_of
from services.shards.diff import CountDiff, ShardsDiff, SplitDiff, ValueDiff, VersionDiff
from services.shards.labels import counts_of
from services.shards.manifest import LoadedManifest
from services.shards.store import Entry
from services.stats.report import storage_report
from services.types import UNLABELLED
from services.wire.seit import v1 as wire

_LISTED = 10
"""Entries of a long list that are shown before "and N more"."""


def manifest_view(loaded: LoadedManifest) -> RenderableType:
    """A dataset version in words, then its splits and its other files as tables."""
    manifest = loaded.manifest
    report = storage_report(manifest)
    words = [plain(line) for line in _in_words(manifest, report, loaded.digest)]
    parts: list[RenderableType] = [*words, storage_view(report)]
    if manifest.assets:
        table = table_of("file", "what", "size>")
        for asset in manifest.assets:
            table.add_row(plain(asset.path), plain(asset.kind), decimal(asset.bytes))
        parts.append(table)
    if report.total and report.total.column_bytes:
        parts.append(_column_table(manifest))
    return Group(*parts)


def _column_table(manifest: wire.Manifest) -> Table:
    table = table_of("added column", "split", "type", "shards>", "size>")
    for split in manifest.splits:
        files = [(shard.path, column) for shard in split.shards for column in shard.columns]
        for name, kind in {column.name: column.type for _, column in files}.items():
            mine = [(path, column) for path, column in files if column.name == name]
            table.add_row(
                plain(name),
                plain(split.name),
                kind,
                f"{len({path for path, _ in mine}):,} of {len(split.shards):,}",
                decimal(sum({column.path: column.bytes for _, column in mine}.values())),
            )
    return table


def _in_words(manifest: wire.Manifest, report: wire.StorageReport, digest: str) -> Iterable[str]:
    spec, total = manifest.spec, report.total
    assert spec is not None  # `load_manifest` refuses a manifest without one
    assert total is not None
    yield (
        f"{manifest.dataset} version {manifest.version}, committed {manifest.created} by"
        f" {manifest.writer}, digest {digest}."
    )
    if manifest.message:
        yield f"It says: {manifest.message}"
    pixels = f" of {spec.image_height}x{spec.image_width} pixels" if total.pixel_bytes else ""
    yield (
        f"{total.rows:,} images{pixels}, each as {spec.grid_height}x{spec.grid_width} tokens of"
        f" {spec.codes:,} codes ({manifest.tokenizer_kind}, {spec.channels} channels a code)."
    )
    compared = [
        f"{share:.2%} of {what}"
        for share, what in (
            (total.share_of_pixels, "the raw pixels"),
            (total.share_of_source, "the source files"),
        )
        if share
    ]
    yield (
        f"They take {decimal(total.bytes)} in {total.shards:,} shards,"
        f" {total.bytes_per_image:,.1f} bytes an image"
        + (f": {' and '.join(compared)}." if compared else ".")
    )
    if total.coefficient_bytes:
        yield (
            f"Beside them stand DCT coefficients, {total.coefficient_bytes / total.rows:,.1f} bytes"
            f" an image, of which {total.coefficients_per_image:,.0f} are not 0."
        )
    if manifest.classes:
        yield f"{len(manifest.classes):,} classes: {_shortened(manifest.classes)}."
    elif any((counts_of(one)[0] != UNLABELLED).any() for s in manifest.splits for one in s.shards):
        yield "Labels without names, which classifiers need (`seit import-release --classes FILE`)."
    else:
        yield "No classes: the rows are not labelled."
    for number, intake in enumerate(manifest.intakes, 1):
        yield f"Ingest {number}: {_intake_words(intake)}."
    if manifest.skipped:
        listed = _shortened([f"{one.path} ({one.reason})" for one in manifest.skipped])
        yield f"What could not be read, {len(manifest.skipped):,}: {listed}."


def _intake_words(intake: wire.Intake) -> str:
    """What one ingest met; parts that did not occur are left out."""
    place = f"{intake.files:,} {intake.source} files" if intake.files else intake.source
    parts = [
        f"{count:,} {what}"
        for count, what in (
            (intake.dropped, "left out as duplicates"),
            (intake.unreadable, "unreadable"),
            (intake.absent, "samples without a picture"),
            (intake.uncaptioned, "rows without a caption"),
        )
        if count
    ]
    return ", ".join([f"{intake.pictures:,} pictures of {place} gave {intake.rows:,} rows", *parts])


def storage_view(report: wire.StorageReport) -> RenderableType:
    """Splits and their sum: how much they take, and against what; then how they use the codes."""
    rows = [*report.splits, *([report.total] if report.total and len(report.splits) > 1 else [])]
    table = table_of(
        "split",
        "images>",
        "shards>",
        "size>",
        "bytes/\nimage>",
        "entropy\nbytes>",
        "of\nsource>",
        "of\npixels>",
    )
    content = table_of(
        "split",
        "codes\nused>",
        "codes\ndead>",
        "entropy\nbits/token>",
        "repeated\ngrids>",
        "repeated\npictures>",
    )
    for one in rows:
        style = "bold" if one is report.total else ""
        table.add_row(
            plain(one.split),
            f"{one.rows:,}",
            f"{one.shards:,}",
            decimal(one.bytes),
            f"{one.bytes_per_image:,.1f}",
            f"{one.entropy_bytes_per_image:,.1f}",
            _share(one.share_of_source),
            _share(one.share_of_pixels),
            style=style,
        )
        content.add_row(
            plain(one.split),
            f"{one.used_codes:,}",
            f"{one.dead_codes:,}",
            f"{one.entropy_bits:.3f}",
            _count(one.duplicate_rows),
            _count(one.duplicate_pictures),
            style=style,
        )
    return Group(table, content)


def summary_table(summaries: Iterable[wire.DatasetSummary]) -> Table:
    """Datasets, or the versions of one, a line each."""
    table = table_of(
        "dataset",
        "version>",
        "committed (UTC)",
        "images>",
        "size>",
        "bytes/\nimage>",
        "of\nsource>",
    )
    for one in summaries:
        table.add_row(
            plain(one.name),
            str(one.version),
            plain(one.created[:16].replace("T", " ")),
            f"{one.rows:,}",
            decimal(one.bytes),
            f"{one.bytes_per_image:,.1f}",
            _share(one.share_of_source),
        )
    return table


def stream_table(streams: Iterable[wire.StreamInfo]) -> RenderableType:
    """What flows into runs, a line each; below it, what could not be read."""
    table = table_of(
        "run",
        "state",
        "step>",
        "of>",
        "left>",
        "images/s>",
        "waits:\nstorage>",
        "\nrecipe>",
        "\nconsumer>",
        "cache\nhits>",
        "trouble",
    )
    reasons: list[RenderableType] = []
    for one in streams:
        silent = one.state == "stalled"
        state = f"stalled, silent {_span(one.silent_seconds)}" if silent else one.state
        table.add_row(
            plain(one.name),
            plain(state),
            f"{one.step:,}",
            f"{one.step_target:,}",
            "" if one.eta_seconds is None else _span(one.eta_seconds),
            f"{one.rows_per_second:,.0f}",
            f"{one.storage_share:.1%}",
            f"{one.augmentation_share:.1%}",
            f"{one.consumer_share:.1%}",
            f"{one.cache_hit_rate:.1%}",
            _troubles(one),
        )
        if one.reason:
            reasons.append(plain(f"{one.name}: {one.reason}"))
    return Group(table, *reasons)


def content_view(labels: wire.LabelReport, codes: wire.CodeReport) -> RenderableType:
    """How evenly labels are spread, and how much of the codebook is used, in words."""
    lines = [
        f"{codes.used_codes:,} of {codes.codes:,} codes are used, {codes.dead_codes:,} are dead;"
        f" perplexity {codes.perplexity:,.1f}."
    ]
    if labels.largest_rows:
        lines.append(
            f"{labels.classes:,} classes, {labels.empty_classes:,} of them empty; the largest has"
            f" {labels.largest_rows:,} rows, the smallest {labels.smallest_rows:,}"
            f" ({labels.imbalance:,.1f} times)."
        )
    return Group(*map(plain, lines))


def growth_table(versions: Iterable[wire.VersionStorage]) -> Table:
    """Versions of a dataset, a line each: what each one added."""
    table = table_of(
        "version>", "committed (UTC)", "images>", "size>", "added>", "shared>", "what changed"
    )
    for one in versions:
        table.add_row(
            str(one.version),
            plain(one.created[:16].replace("T", " ")),
            f"{one.rows:,}",
            decimal(one.bytes),
            decimal(one.added_bytes),
            decimal(one.shared_bytes),
            plain(one.message),
        )
    return table


def health_view(health: wire.HealthReport) -> RenderableType:
    """What is wrong, a line each, the gravest first."""
    if not health.findings:
        return plain("Nothing wrong was found.")
    return Group(*(plain(f"{one.severity}: {one.text}") for one in health.findings))


def _troubles(stream: wire.StreamInfo) -> str:
    counts = {
        "retries": stream.retries,
        "refetches": stream.refetches,
        "shards left out": stream.quarantined,
        "actors restarted": stream.actor_restarts,
    }
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "none"


def _span(seconds: float) -> str:
    """A time span, in the largest units that say enough."""
    whole = round(seconds)
    for unit, sign in ((86_400, "d"), (3600, "h"), (60, "min")):
        if whole >= 2 * unit:
            return f"{whole // unit:,} {sign}"
    return f"{whole} s"


def orphan_table(orphans: Sequence[Entry]) -> Table:
    """Files that no version names, with their sizes."""
    table = table_of("file", "size>")
    for entry in orphans:
        table.add_row(plain(entry.path), decimal(entry.bytes))
    return table


def diff_view(diff: VersionDiff, classes: Sequence[str]) -> RenderableType:
    """What changed from one version to another: a table of the splits, then what else differs.

    classes: names of the labels in the newer of the two.
    """
    if diff.same_content:
        return Text(
            f"Versions {diff.before} and {diff.after} hold the same rows in the same order."
        )
    parts: list[RenderableType] = []
    for values, what in (
        (diff.values, "value"),
        (diff.classes, "label"),
        (diff.assets, "file"),
        (diff.columns, "column"),
    ):
        if values:
            parts.append(_value_table(values, what, diff))
    table = table_of("split", "images>", "change>", "added>", "removed>", "shared>")
    for split in diff.splits:
        change = f"{split.rows_after - split.rows_before:+,}"
        shards = map(_amount, (split.added, split.removed, split.shared))
        table.add_row(plain(split.name), f"{split.rows_after:,}", change, *shards)
    parts.append(table)
    for split in diff.splits:
        parts.extend(plain(line) for line in _split_in_words(split, classes))
    return Group(*parts)


def _value_table(values: Sequence[ValueDiff], what: str, diff: VersionDiff) -> Table:
    table = table_of(what, f"version {diff.before}", f"version {diff.after}")
    for value in values[:_LISTED]:
        table.add_row(plain(value.name), plain(value.before), plain(value.after))
    if len(values) > _LISTED:
        table.caption = f"and {len(values) - _LISTED:,} more"
    return table


def _amount(shards: ShardsDiff) -> str:
    if not shards.shards:
        return "none"
    return f"{shards.shards:,} shard{'s' if shards.shards > 1 else ''}\n{decimal(shards.bytes)}"


def _split_in_words(split: SplitDiff, classes: Sequence[str]) -> Iterable[str]:
    if split.moved:
        yield f"{split.name}: {split.moved:,} shared shards have other row numbers than before."
    if split.duplicates_before != split.duplicates_after:
        before, after = map(_count, (split.duplicates_before, split.duplicates_after))
        yield f"{split.name}: rows that repeat a grid: {before}, now {after}."
    if split.labels:
        named = [
            f"{_label(one.value, classes)} {one.after - one.before:+,}"
            for one in _largest(split.labels)
        ]
        yield f"{split.name}: images of {len(split.labels):,} labels: {_shortened(named)}."
    if split.codes:
        named = [f"{one.value} {one.after - one.before:+,}" for one in _largest(split.codes)]
        yield (
            f"{split.name}: shares of the codes differ by {split.code_shift:.2%} (total variation);"
            f" counts of {len(split.codes):,} codes: {_shortened(named)}."
        )


def _largest(counts: Sequence[CountDiff]) -> list[CountDiff]:
    return sorted(counts, key=lambda one: -abs(one.after - one.before))


def _label(label: int, classes: Sequence[str]) -> str:
    if label == UNLABELLED:
        return "(no label)"
    return f"{label} ({classes[label]})" if label < len(classes) else str(label)


def plain(text: str) -> Text:
    """Foreign text as it is, but for characters that would steer the terminal."""
    return Text(
        "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    )


def _count(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,}"


def _share(share: float) -> str:
    return f"{share:.2%}" if share else "unknown"


def _shortened(entries: Sequence[str]) -> str:
    rest = len(entries) - _LISTED
    return ", ".join(entries[:_LISTED]) + (f" and {rest:,} more" if rest > 0 else "")
