"""The commands of `seit` that look at, check and move what stands on storage.

Each command is a dataclass: its fields are the options, `run` does it and returns the exit code.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

import tyro
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from tyro.conf import Positional

from services import cli_tables as tables
from services.cli_show import show
from services.errors import InvalidInputError, NotFoundError
from services.shards.manifest import DATASETS, file_sizes, load_manifest
from services.shards.store import Entry, Store, open_store, refuse_missing

Root: TypeAlias = Annotated[
    Positional[str],
    tyro.conf.arg(metavar="ROOT", help="folder or URL (s3://, gs://) that holds datasets"),
]
Dataset: TypeAlias = Annotated[
    Positional[str], tyro.conf.arg(metavar="DATASET", help="name of the dataset")
]
Version: TypeAlias = Annotated[int | None, tyro.conf.arg(help="version; None for the newest")]
ColumnName: TypeAlias = Annotated[
    Positional[str], tyro.conf.arg(metavar="NAME", help="name of the column")
]
Splits: TypeAlias = Annotated[
    tuple[str, ...],
    tyro.conf.arg(metavar="SPLIT ...", help="these splits only; none named for all"),
]
ReleaseFolder: TypeAlias = Annotated[
    Positional[Path], tyro.conf.arg(metavar="FOLDER", help="local folder of the release's files")
]


@dataclass(frozen=True)
class Inspect:
    """Show a dataset's manifest in words and a table."""

    root: Root
    dataset: Dataset
    version: Version = None

    def run(self, out: Console) -> int:
        loaded = load_manifest(standing(self.root), self.dataset, self.version)
        show(out, tables.manifest_view(loaded))
        return 0


@dataclass(frozen=True)
class Verify:
    """Check every file of a dataset version against its checksum; exit 1 on the first bad one."""

    root: Root
    dataset: Dataset
    version: Version = None
    rows: Annotated[
        bool,
        tyro.conf.arg(help="also unpack every row, and count labels, codes and duplicates anew"),
    ] = False

    def run(self, out: Console) -> int:
        from services.shards.verify import verify_dataset, verify_files

        root = standing(self.root)
        manifest = load_manifest(root, self.dataset, self.version).manifest
        size = sum(file_sizes(manifest).values())
        with progress_bar(DownloadColumn(), TransferSpeedColumn()) as progress:
            task = progress.add_task("verify", total=size)
            verify = verify_dataset if self.rows else verify_files
            for check in verify(root, self.dataset, manifest.version):
                if check.failure is not None:
                    progress.stop()
                    complain(f"{check.name} is bad: {check.failure}")
                    return 1
                progress.advance(task, check.bytes)
        out.print(
            f"{self.dataset} version {manifest.version}: {decimal(size)}, all as they were written"
            + (", every row and count right" if self.rows else ""),
            markup=False,
        )
        return 0


@dataclass(frozen=True)
class Diff:
    """Show what changed between two versions of a dataset; reads their manifests only."""

    root: Root
    dataset: Dataset
    before: Annotated[Positional[int], tyro.conf.arg(metavar="V1", help="the version to start at")]
    after: Annotated[Positional[int], tyro.conf.arg(metavar="V2", help="the version to end at")]

    def run(self, out: Console) -> int:
        from services.shards.diff import diff_manifests

        root = standing(self.root)
        before, after = (
            load_manifest(root, self.dataset, version).manifest
            for version in (self.before, self.after)
        )
        show(out, tables.diff_view(diff_manifests(before, after), after.classes))
        return 0


@dataclass(frozen=True)
class Gc:
    """Find files that no version names, left by killed writers; remove them with --delete."""

    root: Root
    dataset: Dataset
    delete: Annotated[bool, tyro.conf.arg(help="remove them; without it they are listed")] = False
    min_age_hours: Annotated[
        float, tyro.conf.arg(help="spare younger files, which a running ingest may yet name, hours")
    ] = 24.0

    def run(self, out: Console) -> int:
        from services.shards.orphans import find_orphans, remove_orphans

        if not self.min_age_hours >= 0:
            raise InvalidInputError(
                f"min_age_hours is {self.min_age_hours}, valid are 0 and more: nothing was looked "
                "at; give the hours that an ingest may take"
            )
        root, min_age_seconds = standing(self.root), self.min_age_hours * 3600
        orphans = find_orphans(root, self.dataset, min_age_seconds=min_age_seconds)
        if not orphans:
            out.print("nothing to collect")
            return 0
        show(out, tables.orphan_table(orphans))
        if not self.delete:
            out.print(f"{_amount(orphans)}, found; nothing was removed (--delete removes them)")
            return 0
        removed = remove_orphans(root, self.dataset, orphans, min_age_seconds=min_age_seconds)
        out.print(f"{_amount(removed)}, removed")
        if len(removed) < len(orphans):
            kept = len(orphans) - len(removed)
            out.print(f"{kept:,} files changed after they were listed, and were left alone")
        return 0


@dataclass(frozen=True)
class AddColumn:
    """Give each row one more value, as the next version; the shards stay as they are."""

    root: Root
    dataset: Dataset
    name: ColumnName
    values: Annotated[
        Path,
        tyro.conf.arg(
            metavar="FILE", help="Parquet file with columns `key` and `value`, a row each key"
        ),
    ]
    splits: Splits = ()

    def run(self, out: Console) -> int:
        from services.shards.columns import add_column

        root = standing(self.root)
        with progress_bar(MofNCompleteColumn()) as progress:
            task = progress.add_task("rows", total=None)
            loaded = add_column(
                root,
                self.dataset,
                self.name,
                self.values,
                splits=self.splits,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        show(out, tables.manifest_view(loaded))
        return 0


@dataclass(frozen=True)
class DropColumn:
    """Leave an added column out of the next version; earlier versions keep it."""

    root: Root
    dataset: Dataset
    name: ColumnName
    splits: Splits = ()

    def run(self, out: Console) -> int:
        from services.shards.columns import drop_column

        loaded = drop_column(standing(self.root), self.dataset, self.name, splits=self.splits)
        show(out, tables.manifest_view(loaded))
        return 0


@dataclass(frozen=True)
class Renumber:
    """Number only the codes that a dataset uses, as its next version; original ids are kept."""

    root: Root
    dataset: Dataset

    def run(self, out: Console) -> int:
        from services.shards.renumber import renumber_dataset

        with progress_bar(MofNCompleteColumn()) as progress:
            task = progress.add_task("shards", total=None)
            loaded = renumber_dataset(
                standing(self.root),
                self.dataset,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        if loaded is None:
            out.print(
                f"{self.dataset}: nothing to renumber, as it uses all of its codes, or has no rows;"
                " no version was made",
                markup=False,
                soft_wrap=True,
            )
        else:
            show(out, tables.manifest_view(loaded))
        return 0


@dataclass(frozen=True)
class ImportRelease:
    """Turn a folder of the published release format into the next version of a dataset."""

    folder: ReleaseFolder
    root: Root
    dataset: Dataset
    grid: Annotated[
        tuple[int, int],
        tyro.conf.arg(metavar="H W", help="tokens of a picture; the ImageNet release: 32 32"),
    ]
    image_size: Annotated[
        tuple[int, int],
        tyro.conf.arg(
            metavar="H W", help="pixels that the tokenizer read (256 256); 0 0 if not known"
        ),
    ] = (0, 0)
    classes: Annotated[
        Path | None, tyro.conf.arg(help="text file, line i (from 0) is the name of label i")
    ] = None
    compression_level: Annotated[
        int,
        tyro.conf.arg(
            help="of zstd, 1 to 19: 9 makes shards of photographs a fifth smaller, and packs 8 "
            "times slower; reading stays as fast"
        ),
    ] = 1

    def run(self, out: Console) -> int:
        from services.shards.release import import_release

        if not self.folder.is_dir():
            raise NotFoundError(f"there is no folder {self.folder}: give the one of the release")
        root, names = open_store(self.root), _read_classes(self.classes)
        with progress_bar(MofNCompleteColumn()) as progress:
            task = progress.add_task("rows", total=None)
            loaded = import_release(
                self.folder,
                root,
                self.dataset,
                grid=self.grid,
                image_size=self.image_size,
                classes=names,
                compression_level=self.compression_level,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        show(out, tables.manifest_view(loaded))
        return 0


@dataclass(frozen=True)
class ExportRelease:
    """Write a dataset version in the published release format, which the published code reads."""

    root: Root
    dataset: Dataset
    folder: ReleaseFolder
    version: Version = None
    overwrite: Annotated[
        bool, tyro.conf.arg(help="replace the files of a release that stands in FOLDER")
    ] = False

    def run(self, out: Console) -> int:
        from services.shards.cache import ShardCache
        from services.shards.release import export_release, standing_files

        root = standing(self.root)
        with (
            tempfile.TemporaryDirectory(prefix="seit-export-") as scratch,
            progress_bar(MofNCompleteColumn()) as progress,
        ):
            task = progress.add_task("rows", total=None)
            export_release(
                root,
                self.dataset,
                self.folder,
                ShardCache(scratch, limit_bytes=1),  # each shard is read once: room for one
                self.version,
                lambda done, total: progress.update(task, completed=done, total=total),
                overwrite=self.overwrite,
            )
        written = standing_files(self.folder)
        size = decimal(sum(path.stat().st_size for path in written))
        for path in written:
            out.print(str(path), markup=False, highlight=False, soft_wrap=True)
        out.print(f"{len(written)} files, {size}; keys, source sizes and class names stay behind")
        return 0


def _amount(entries: Sequence[Entry]) -> str:
    return f"{len(entries):,} files, {decimal(sum(entry.bytes for entry in entries))}"


def _read_classes(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        # By line ends alone: `splitlines` would also cut a name at U+2028, and shift all behind it.
        with path.open(encoding="utf-8-sig") as lines:
            return [line.rstrip("\n") for line in lines]
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path} of class names") from error
    except (OSError, UnicodeError) as error:
        raise InvalidInputError(f"class names in {path} cannot be read: {error}") from error


def standing(url: str) -> Store:
    """The root at `url`. Raises: InvalidInputError; NotFoundError for a folder that is missing."""
    root = open_store(url)
    refuse_missing(root, DATASETS)
    return root


def progress_bar(*amounts: ProgressColumn) -> Progress:
    """A bar on stderr that shows these amounts beside it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *amounts,
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def complain(message: str) -> None:
    """An error on stderr, its lines whole however narrow the terminal is."""
    for line in f"seit: {message}".splitlines():
        Console(stderr=True).print(tables.plain(line), soft_wrap=True)
