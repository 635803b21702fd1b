"""Masks of a stream's rows, out of the datasets' column `mask`. Neither Ray nor torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.errors import InvalidInputError
from services.masks import decode_mask
from services.shards.reader import DatasetReader
from services.types import IGNORED, MASK_COLUMN, IntArray, MaskArray


class Masks:
    """Reads masks of rows by source, shard and row, as `Sources` reads their ids.

    classes: how many there are; pixels are of one of them, or `IGNORED`.
    Raises: InvalidInputError where rows of a source have no mask, or tokens are no whole number of
    pixels.
    """

    def __init__(self, readers: Sequence[DatasetReader], classes: int) -> None:
        self._readers, self._classes = readers, classes
        for reader in readers:
            _check(reader)
        spec = readers[0].spec
        self._grid = spec.grid_height, spec.grid_width
        self._pixels = spec.image_height // spec.grid_height, spec.image_width // spec.grid_width

    def size(self, tokens: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels of so many tokens."""
        return tokens[0] * self._pixels[0], tokens[1] * self._pixels[1]

    def take(
        self, source: IntArray, shard: IntArray, inside: IntArray, boxes: IntArray | None
    ) -> MaskArray:
        """(N, h, w) uint8 in pixels: the whole masks, or what is left of them by the boxes.

        source, shard, inside: (N,) as `RowPlan.place` gives them; all is `IGNORED` where the shard
        is -1. boxes: (N, 4) (y, x, height, width) in tokens, of one size.
        Raises: InvalidInputError for a pixel of a class that there is not: on a GPU, where a
        trainer may have its masks, to look for one would make it wait in each step.
        """
        (down, across), (rows, columns) = self._pixels, self._grid
        kept = self._grid
        if boxes is not None and len(boxes):
            kept = int(boxes[0, 2]), int(boxes[0, 3])
        masks = np.full((len(source), *self.size(kept)), IGNORED, np.uint8)
        for number in np.unique(source[shard >= 0]).tolist():
            own = np.flatnonzero((source == number) & (shard >= 0))
            reader = self._readers[number]
            stored = reader.column(MASK_COLUMN, shard[own], inside[own])
            for at, data in zip(own.tolist(), stored, strict=True):
                name = f"{reader.source.dataset}/{reader.split.name}, row {inside[at]} of a shard"
                mask = decode_mask(bytes(data), rows * down, columns * across, name)
                self._check_classes(mask, name)
                if boxes is not None:
                    y, x, h, w = boxes[at].tolist()
                    mask = mask[y * down : (y + h) * down, x * across : (x + w) * across]
                masks[at] = mask
        return masks

    def _check_classes(self, mask: MaskArray, name: str) -> None:
        unknown = mask[(mask >= self._classes) & (mask != IGNORED)]
        if len(unknown):
            raise InvalidInputError(
                f"{name}: a mask with the class {unknown[0]}, valid are 0..{self._classes - 1} and"
                f" {IGNORED}: masks and the {self._classes} class names of the dataset do not"
                " belong together, and nothing was read; ingest it again"
            )

    def bring(self, source: int, shard: int) -> None:
        """Fetch a shard's masks into the node's cache, or find them there."""
        self._readers[source].bring_column(MASK_COLUMN, shard)


def _check(reader: DatasetReader) -> None:
    where = f"split {reader.split.name!r} of {reader.source.dataset!r}"
    lacking = sum(
        shard.rows
        for shard in reader.split.shards
        if all(column.name != MASK_COLUMN for column in shard.columns)
    )
    kind = reader.column_types.get(MASK_COLUMN, "binary")
    if lacking or kind != "binary":
        raise InvalidInputError(
            f"{where} version {reader.manifest.version}: {lacking} of {len(reader)} rows have no"
            f" mask (column {MASK_COLUMN!r} of type {kind}): there is nothing to learn a"
            " segmentation from; ingest the pictures with --masks"
        )
    spec = reader.spec
    pixels = spec.image_height, spec.image_width
    if not all(pixels) or pixels[0] % spec.grid_height or pixels[1] % spec.grid_width:
        raise InvalidInputError(
            f"{where}: {spec.grid_height}x{spec.grid_width} tokens of {pixels[0]}x{pixels[1]}"
            " pixels: a token is no whole number of pixels, so masks cannot follow it; ingest with"
            " a tokenizer whose patch divides the picture"
        )
