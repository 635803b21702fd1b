"""Pictures that are listed before they are read: of class folders, or with masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from services.masks import MaskClasses
from services.pictures import Picture
from services.sources.sample import Found, Sample, Unit


class _Job(NamedTuple):
    split: str
    start: int
    stop: int


class ListedSource:
    """A list of pictures for each split, a job for each shard-to-be; see `PictureSource`."""

    files = 0
    captions = False
    unit: Unit = "pictures"

    def __init__(
        self,
        kind: str,
        classes: tuple[str, ...],
        splits: Mapping[str, Sequence[Picture]],
        rows: int,
        masks: Mapping[str, Path] | None = None,
        mask_classes: MaskClasses | None = None,
    ) -> None:
        """rows: of a shard. masks: file of each picture's mask by key."""
        self.kind, self.classes, self.mask_classes = kind, classes, mask_classes
        self._splits, self._masks = splits, masks or {}
        self._jobs = [
            _Job(name, at, min(at + rows, len(pictures)))
            for name, pictures in splits.items()
            for at in range(0, len(pictures), rows)
        ]
        self.sizes = [job.stop - job.start for job in self._jobs]

    def read(self, job: int) -> Iterator[Found]:
        split, start, stop = self._jobs[job]
        for one in self._splits[split][start:stop]:
            yield Sample(one.key, one.path, one.label, split, mask=self._masks.get(one.key))
