"""A rank's stream of pictures, for the trainers that learn from pixels. Knows nothing of Ray.

Rows are ordered by the same plan as tokens are, so the batches of a step are the same for every
number of workers, and a position is a step.

A picture that cannot be read takes part in nothing: its row counts as one that does not exist.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import xxhash

from services.errors import InvalidInputError
from services.pictures import ByteArray, Picture, check_unreadable, read_picture, split
from services.plan import cursor
from services.plan.epoch import OrderSpec, Plan
from services.plan.sequential import SequentialPlan
from services.stream.account import Account
from services.stream.batch import StreamBatch
from services.stream.loader import metered
from services.stream.meter import Meter
from services.stream.order import THREADS, in_order
from services.types import UNLABELLED, IntArray
from services.wire.seit import v1 as wire

logger = logging.getLogger(__name__)

MEMORY_BYTES = 1 << 28
"""Decoded pictures that a set keeps in memory, so that a small folder is decoded only once."""

_AHEAD = 4  # batches decoded ahead of the consumer


def picture_splits(
    found: Mapping[str, Sequence[Picture]], validation_fraction: float, seed: int
) -> dict[str, list[Picture]]:
    """Splits with their pictures in the order in which they are laid down and numbered.

    A folder that has no validation split of its own gives the `validation_fraction` of its
    training pictures to one. The order is a hash of (seed, key): classes are mixed everywhere, so
    a shuffle over a part of the rows already mixes them, and it is the same wherever the folder
    stands. Splits without pictures are left out.
    """
    splits = {name: list(pictures) for name, pictures in found.items()}
    if set(splits) == {"train"} and validation_fraction > 0:
        train, validation = split(splits["train"], validation_fraction, seed)
        splits = {"train": train, "validation": validation}
    return {
        name: sorted(pictures, key=lambda picture: (_place(seed, picture.key), picture.key))
        for name, pictures in splits.items()
        if pictures
    }


def _place(seed: int, key: str) -> int:
    # File names need not be valid UTF-8: os.fsencode gives back their bytes.
    return xxhash.xxh3_64_intdigest(os.fsencode(f"{seed}/{key}"))


class PictureSet:
    """The pictures of one split by row number, decoded to one size; safe to share by threads.

    size: (height, width) in pixels. border: pixels to cut off each side of the files before.
    unreadable: why, by row, of the pictures met so far.
    """

    def __init__(
        self, name: str, pictures: Sequence[Picture], size: tuple[int, int], border: int = 0
    ) -> None:
        self.name, self.size, self._border = name, size, border
        self._pictures = pictures
        self.unreadable: dict[int, str] = {}
        self._kept: dict[int, ByteArray] = {}
        self._room = MEMORY_BYTES // (3 * size[0] * size[1])
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pictures)

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that name the pictures, their labels and their order."""
        listing = xxhash.xxh3_128()
        for picture in self._pictures:
            listing.update(os.fsencode(f"{picture.label}/{picture.key}\n"))
        return listing.hexdigest()

    def label(self, row: int) -> int:
        """Label of a row."""
        return self._pictures[row].label

    def read(self, row: int) -> ByteArray | None:
        """(3, height, width) uint8; None, noted and logged once, where it cannot be read.

        Raises: InvalidInputError past `services.pictures.MAX_UNREADABLE_SHARE` of such pictures.
        """
        kept = self._kept.get(row)
        if kept is not None:
            return kept
        if row in self.unreadable:
            return None
        try:
            pixels = read_picture(self._pictures[row].path, *self.size, self._border)
        except InvalidInputError as error:
            self._note(row, str(error))
            return None
        if len(self._kept) < self._room:
            self._kept[row] = pixels
        return pixels

    def _note(self, row: int, reason: str) -> None:
        with self._lock:
            if row not in self.unreadable:
                logger.warning("%s; it is left out", reason)
            self.unreadable[row] = reason
            reasons = list(self.unreadable.values())
        which = f"pictures of the split {self.name!r}"
        check_unreadable(reasons, len(self), which, "the run stopped")


class PictureStream:
    """Steps [start, stop) of `rank` of `world`, in order, each exactly once.

    inputs: (N, 3, height, width) uint8; label_b equals label, nothing is mixed. Rows that do not
    exist, or cannot be read, are -1, black, and of weight 0.
    sequential: each row once, in order; for validation.
    saved: a position from `cursor` to begin at. epochs: how often the training split is passed.
    whole: pictures that an epoch's number of steps is counted from, where `pictures` are a part of
    more: fewer pictures keep the number of iterations, and come round more often.
    Raises: CursorMismatchError where the position is of another split or order.
    """

    def __init__(
        self,
        pictures: PictureSet,
        order: OrderSpec,
        *,
        rank: int = 0,
        world: int = 1,
        epochs: int = 1,
        saved: bytes | None = None,
        sequential: bool = False,
        whole: int = 0,
    ) -> None:
        self._pictures, self._order = pictures, order
        kind = SequentialPlan if sequential else Plan
        self._plan = kind(np.array([len(pictures)], np.int64), order)
        self._slots = self._plan.rank_slots(rank, world)
        steps = -(-whole // order.global_batch_rows)
        self.steps_per_epoch = steps or self._plan.steps_per_epoch
        self._source = wire.Source(split=pictures.name, manifest_digest=pictures.digest)
        self._stop = epochs * self.steps_per_epoch
        self._start = 0
        if saved is not None:
            position = cursor.load(saved)
            cursor.check(position, self._source, order)
            self._start = position.step
        self._meter = Meter(
            pictures.name, rank, world, self._stop, step=self._start, fetchers=THREADS
        )

    def cursor(self, step: int) -> bytes:
        """Position after `step` consumed steps, valid for any number of workers."""
        return cursor.dump(cursor.make_cursor(self._source, self._order, step))

    def flow(self) -> wire.Flow:
        """What flowed so far."""
        return self._meter.snapshot()

    def __iter__(self) -> Iterator[StreamBatch]:
        return metered(in_order(self._batch, range(self._start, self._stop), _AHEAD), self._meter)

    def _batch(self, step: int) -> StreamBatch:
        began = time.perf_counter()
        spans = [self._plan.span(step, slot) for slot in self._slots]
        rows: IntArray = np.concatenate([span.rows for span in spans])
        pixels = np.zeros((len(rows), 3, *self._pictures.size), np.uint8)
        labels = np.full(len(rows), UNLABELLED, np.int64)
        for at, row in enumerate(rows.tolist()):
            found = self._pictures.read(row) if row >= 0 else None
            if found is None:
                rows[at] = -1
            else:
                pixels[at], labels[at] = found, self._pictures.label(row)
        label = torch.from_numpy(labels)
        return StreamBatch(
            step=step,
            epoch=spans[0].epoch,
            rows=rows,
            row_epochs=np.full(len(rows), spans[0].epoch, np.int64),
            inputs=torch.from_numpy(pixels),
            label=label,
            label_b=label,
            mix=torch.ones(len(rows)),
            weight=torch.from_numpy((rows >= 0).astype(np.float32)),
            account=Account(storage_seconds=time.perf_counter() - began),
        )
