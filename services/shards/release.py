"""A dataset from the published release's folder, and such a folder from a dataset.

A folder holds three files for each split (`release_files.py`), `codebook.ckpt`, one (K, d) tensor,
and perhaps `synonyms.json`, {"id": [ids, nearest first]}. Memory stays constant both ways: rows
pass through one shard at a time.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from services.errors import FormatError, InvalidInputError
from services.folders import alone, writing
from services.shards.cache import ShardCache
from services.shards.layout import DEFAULT_COMPRESSION_LEVEL, check_compression_level
from services.shards.manifest import LoadedManifest, commit, load_manifest, put_asset, read_asset
from services.shards.reader import DatasetReader
from services.shards.release_files import (
    RELEASE_PATTERNS,
    ReleaseSplit,
    count_rows,
    find_splits,
    read_split,
    write_split,
)
from services.shards.store import Store
from services.shards.validate import MAX_PIXELS
from services.shards.writer import DEFAULT_SHARD_ROWS, ShardWriter, build_split
from services.tokens.codebook import Codebook, token_spec
from services.types import MAX_GRID, IntArray, TokenRows
from services.wire.seit import v1 as wire

logger = logging.getLogger(__name__)

_CODEBOOK, _SYNONYMS = "codebook.ckpt", "synonyms.json"
_UNFINISHED = ".seit-export-"
_SPLIT_NAMES = {"val": "validation"}  # the release's name of a split: ours

Progress = Callable[[int, int], None]
"""Told the rows done and the rows of all splits together, again and again."""


def _ignore(done: int, total: int) -> None:
    """The progress of a caller that does not want to know."""


def import_release(
    folder: Path,
    root: Store,
    dataset: str,
    *,
    grid: tuple[int, int],
    image_size: tuple[int, int] = (0, 0),
    classes: Sequence[str] = (),
    shard_rows: int = DEFAULT_SHARD_ROWS,
    compression_level: int = DEFAULT_COMPRESSION_LEVEL,
    progress: Progress = _ignore,
) -> LoadedManifest:
    """Write all splits of a release folder as shards and commit them as the next version.

    grid: tokens (height, width). image_size: pixels that the tokenizer read, 0 where not known.
    classes: name of label i; may be empty. A file `NAME-val-token…` becomes split "validation".
    compression_level: of the shards, 1 to 19 (`layout.to_parquet`).
    Raises InvalidInputError for sizes outside of their range, and the errors of
    `release_files.read_split`; no version is committed then.
    """
    check_compression_level(compression_level)
    _check_sizes(grid, image_size)
    codebook = Codebook.from_published(folder / _CODEBOOK)
    spec = token_spec(grid, codebook.codes, codebook.channels, image_size)
    splits: dict[str, wire.Split] = {}
    found = find_splits(folder)
    total, done = sum(map(count_rows, found)), 0
    for files in found:
        last = files.stem.rpartition("-")[2]
        name = _SPLIT_NAMES.get(last, last)
        if name in splits:
            raise InvalidInputError(
                f"{folder} has two sets of files for split {name!r}, the second is {files.stem}: "
                "keep each release in a folder of its own"
            )
        with ShardWriter(root, dataset, name, spec, shard_rows, compression_level) as writer:
            for rows in read_split(files, spec):
                _check_classes(rows.labels, len(classes), files)
                writer.add(rows)
                done += len(rows)
                progress(done, total)
        splits[name] = build_split(root, dataset, name, writer.results, spec.codes)
        logger.info("%s: %d shards of split %s", files.stem, len(writer.results), name)
    assets = [put_asset(root, dataset, "codebook", codebook.to_bytes())]
    if (folder / _SYNONYMS).exists():
        synonyms = read_synonyms(folder / _SYNONYMS, codebook.codes)
        packed = safetensors.numpy.save({"synonyms": synonyms}, {"seit": "synonyms", "format": "1"})
        assets.append(put_asset(root, dataset, "synonyms", packed))
    manifest = wire.Manifest(
        dataset=dataset,
        spec=spec,
        tokenizer_kind="release",
        assets=assets,
        classes=list(classes),
        splits=list(splits.values()),
        message=f"imported from the release in {folder.name}",
    )
    return commit(root, manifest)


def _check_sizes(grid: tuple[int, int], image_size: tuple[int, int]) -> None:
    for what, sizes, low, high in (
        ("grid", grid, 1, MAX_GRID),
        ("image_size", image_size, 0, MAX_PIXELS),
    ):
        if not all(low <= side <= high for side in sizes):
            raise InvalidInputError(
                f"{what} is {sizes}, valid are a height and a width of {low} to {high}: nothing "
                "was read; give those of the release"
            )


def export_release(
    root: Store,
    dataset: str,
    folder: Path,
    cache: ShardCache,
    version: int | None = None,
    progress: Progress = _ignore,
    *,
    overwrite: bool = False,
) -> list[ReleaseSplit]:
    """Write a dataset's splits, codebook and synonyms in the release format.

    overwrite: a release that stands in the folder, all files of it, gives way to the new one, once
    that is written. After an error the older one stands as it was. What a process that was killed
    left of its own goes.

    Keys, source sizes and class names have no place in it. Raises InvalidInputError for more
    codes than the format can hold (511), splits that would have the same files, and a folder that
    holds a release without `overwrite`; StoreError where another process exports into it, or it
    cannot be made or written to; and the errors of DatasetReader.
    """
    manifest = load_manifest(root, dataset, version).manifest
    stems = _stems(manifest)
    total = sum(shard.rows for split in manifest.splits for shard in split.shards)
    done = 0

    def told(batches: Iterable[TokenRows]) -> Iterator[TokenRows]:
        nonlocal done
        for rows in batches:
            yield rows
            done += len(rows)
            progress(done, total)

    taken = (
        f"another process exports into {folder}: the files of both would be mixed, so this one"
        " wrote nothing; wait for its end, or give another folder"
    )
    with alone(folder, taken) as nobody_else, writing(folder):
        present = standing_files(folder)
        if present and not overwrite:
            raise InvalidInputError(
                f"{folder} holds a release already ({present[0].name} and others, {len(present)} "
                "files): give another folder, or --overwrite to replace it"
            )
        for left in folder.glob(f"{_UNFINISHED}*") if nobody_else else ():
            shutil.rmtree(left, ignore_errors=True)  # of a process that was killed
        with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder) as made:
            for split, stem in zip(manifest.splits, stems, strict=True):
                reader = DatasetReader(
                    root, dataset, split=split.name, cache=cache, version=manifest.version
                )
                files = ReleaseSplit(Path(made), stem)
                write_split(files, told(reader.iter_rows()), len(reader), reader.spec.codes)
            _write_assets(root, manifest, Path(made))
            _replace(folder, Path(made))
    return [ReleaseSplit(folder, stem) for stem in stems]


def _stems(manifest: wire.Manifest) -> list[str]:
    """How the files of each split are called; InvalidInputError where two splits have one name."""
    theirs = {ours: theirs for theirs, ours in _SPLIT_NAMES.items()}
    owners: dict[str, str] = {}
    for split in manifest.splits:
        stem = f"{manifest.dataset}-{theirs.get(split.name, split.name)}"
        other = owners.setdefault(stem, split.name)
        if other != split.name:
            raise InvalidInputError(
                f"splits {other!r} and {split.name!r} of dataset {manifest.dataset!r} would both "
                f"be {stem}-… in a release, which names a split validation val: nothing was "
                "written; ingest one of them under another name"
            )
    return list(owners)


def _write_assets(root: Store, manifest: wire.Manifest, folder: Path) -> None:
    for asset in manifest.assets:
        if asset.kind == "codebook":
            codebook = Codebook.from_bytes(read_asset(root, manifest.dataset, asset))
            saved = io.BytesIO()  # of a full disk torch itself would raise no OSError
            torch.save(codebook.weight, saved)
            (folder / _CODEBOOK).write_bytes(saved.getvalue())
        if asset.kind == "synonyms":
            packed = read_asset(root, manifest.dataset, asset)
            synonyms = safetensors.numpy.load(packed)["synonyms"]
            named = {str(code): row for code, row in enumerate(synonyms.tolist())}
            (folder / _SYNONYMS).write_text(json.dumps(named))


def _replace(folder: Path, made: Path) -> None:
    """Put the files of `made` in place of the release in `folder`."""
    # The codebook goes first and comes last: without it nobody takes what is there for a release,
    # so an end in between never leaves files of two of them that seem to belong together.
    for path in sorted(standing_files(folder), key=lambda path: path.name != _CODEBOOK):
        path.unlink()
    for path in sorted(made.iterdir(), key=lambda path: path.name == _CODEBOOK):
        os.replace(path, folder / path.name)


def standing_files(folder: Path) -> list[Path]:
    """Files of a release that stand in the folder, by name; [] also where there is no folder."""
    named = (folder / _CODEBOOK, folder / _SYNONYMS)
    return sorted(
        [path for pattern in RELEASE_PATTERNS for path in folder.glob(pattern)]
        + [path for path in named if path.exists()]
    )


def read_synonyms(path: Path, codes: int) -> IntArray:
    """The release's `synonyms.json` as (K, count) int64, nearest first.

    Raises FormatError unless it gives each of the K codes the same number of codes.
    """
    try:
        raw = json.loads(path.read_bytes())
        table = np.array([raw[str(code)] for code in range(codes)])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{path}: not lists of ids for codes 0..{codes - 1}: {error}") from error
    if table.ndim != 2 or table.dtype.kind != "i" or len(raw) != codes or table.size == 0:
        raise FormatError(f"{path}: {len(raw)} codes with {table.shape} synonyms for {codes} codes")
    if table.min() < 0 or table.max() >= codes:
        raise FormatError(f"{path}: ids {table.min()}..{table.max()} are outside 0..{codes - 1}")
    return table.astype(np.int64)


def _check_classes(labels: IntArray, classes: int, files: ReleaseSplit) -> None:
    if classes and len(labels) and int(labels.max()) >= classes:
        raise FormatError(
            f"{files.labels}: label {labels.max()} has no name among the {classes} classes given: "
            "give the name of every class, or none"
        )
