"""A folder of pictures stored smaller, by JPEG's quality or by resolution.

    python trainers/picture_variant.py --images photos --out photos-q5 --jpeg-quality 5
    python trainers/picture_variant.py --images photos --out photos-20 --resolution 0.2

Both splits are treated alike: whoever trains on such pictures can treat a test picture the same
way, at no storage. Grey pictures stay grey, and tables are fitted to each file (Pillow's
`optimize`), so that files are as small as the method allows. Started again after an interruption it
goes on where it stood.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import track

from services.errors import InvalidInputError
from services.folders import replaced
from services.pictures import Picture, check_unreadable, open_picture
from services.plan.draws import check_seed
from services.shards.store import open_store
from trainers.data_config import require
from trainers.picture_config import PicturesConfig
from trainers.picture_streams import TRAIN, split_pictures
from trainers.program import RESUMES, program
from trainers.reports import read_json

logger = logging.getLogger(__name__)

REPORT = "variant.json"
"""File of a finished folder: the pictures and the bytes of each split."""
_FOLDERS = {TRAIN: "train", "validation": "val", "test": "test"}
_KEPT_QUALITY = 95  # of pictures that were JPEG and are only made smaller


@dataclass(frozen=True)
class VariantConfig:
    """Write the pictures of a folder again, as train/class/picture and val/class/picture."""

    images: str
    """Folder of class/picture files, or of train/ and val/ with such folders."""
    out: Path
    """Folder to write to."""
    jpeg_quality: int | None = None
    """Store as JPEG of this quality, 1 to 95."""
    resolution: float | None = None
    """Store with sides of this share, above 0 and below 1: JPEG of quality 95 what was JPEG, and
    PNG all else."""
    validation_fraction: float = 0.2
    """Share of the pictures set apart for validation, where the folder has no split of its own."""
    seed: int = 0
    """Seed of that split."""
    threads: int = 2
    """Pictures that are written at a time (count)."""

    def __post_init__(self) -> None:
        given = (self.jpeg_quality, self.resolution)
        valid = "one of the two"
        require((None in given) and given != (None, None), "jpeg_quality, resolution", given, valid)
        quality, share = self.jpeg_quality, self.resolution
        require(quality is None or 1 <= quality <= 95, "jpeg_quality", quality, "from 1 to 95")
        valid = "a share above 0 and below 1"
        require(share is None or 0 < share < 1, "resolution", share, valid)
        check_seed("seed", self.seed)
        require(self.threads >= 1, "threads", self.threads, "at least 1")
        self.pictures()

    def pictures(self) -> PicturesConfig:
        """Where they are from, and how they are split."""
        return PicturesConfig(self.images, self.validation_fraction, self.seed)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the folder stands, 2 after an error of ours, 130 when interrupted."""
    return program(VariantConfig, write_variant, argv, interrupted=RESUMES)


def write_variant(config: VariantConfig) -> None:
    """Write the folder, and its report last.

    Raises: NotFoundError; InvalidInputError past 1 % of unreadable pictures, or where the folder
    holds another variant.
    """
    asked = {"jpeg_quality": config.jpeg_quality, "resolution": config.resolution}
    store = open_store(str(config.out.resolve()))
    mark = "variant.part.json"
    classes, splits = split_pictures(config.pictures())
    for name in (REPORT, mark):
        if store.exists(name) and (stands := read_json(store, name).get("asked")) != asked:
            raise InvalidInputError(
                f"{config.out} holds pictures of {stands}, not of {asked}: nothing was changed"
                " there; give another --out"
            )
    store.write(mark, json.dumps({"asked": asked}).encode())
    counts: dict[str, dict[str, int]] = {}
    skipped: list[str] = []
    total = sum(map(len, splits.values()))
    console = Console(stderr=True)
    written = track(
        _written(config, classes, splits, skipped),
        "pictures",
        total,
        console=console,
        disable=not console.is_terminal,
    )
    for split, size in written:
        if size:
            count = counts.setdefault(split, {"pictures": 0, "bytes": 0})
            count["pictures"] += 1
            count["bytes"] += size
        check_unreadable(skipped, total, "pictures", "the rest was not written")
    store.write(REPORT, json.dumps({"asked": asked, "splits": counts}, indent=2).encode())
    store.delete(mark)
    logger.info("%s: %s", config.out, json.dumps(counts))


def _written(
    config: VariantConfig,
    classes: Sequence[str],
    splits: dict[str, list[Picture]],
    skipped: list[str],
) -> Iterator[tuple[str, int]]:
    """(split, bytes) of each picture as it stands; 0 bytes for one that cannot be read."""

    def write(split: str, picture: Picture) -> tuple[str, int]:
        try:
            folder = config.out / _FOLDERS[split] / _safe(classes[picture.label])
            return split, _write(config, folder, picture)
        except InvalidInputError as error:
            logger.warning("%s; it is left out", error)
            skipped.append(str(error))
            return split, 0

    with ThreadPoolExecutor(config.threads) as pool:
        for split, pictures in splits.items():
            for start in range(0, len(pictures), 1024):  # not a million tasks at once
                some = pictures[start : start + 1024]
                yield from pool.map(write, [split] * len(some), some)


def _write(config: VariantConfig, folder: Path, picture: Picture) -> int:
    """Size in bytes of the file, which is written unless it stands."""
    jpeg = config.jpeg_quality is not None or picture.path.suffix.lower() in (".jpg", ".jpeg")
    # The whole key, as a folder may hold a.png beside a.jpg, and another a.png below.
    path = folder / f"{_safe(picture.key)}{'.jpg' if jpeg else '.png'}"
    if path.is_file():
        return path.stat().st_size
    image = open_picture(picture.path)
    if config.resolution is not None:
        width, height = (max(1, round(side * config.resolution)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    if jpeg:
        image.save(encoded, "JPEG", quality=config.jpeg_quality or _KEPT_QUALITY, optimize=True)
    else:
        image.save(encoded, "PNG", optimize=True)
    with replaced(path) as part:
        part.write_bytes(encoded.getvalue())
    return len(encoded.getvalue())


def _safe(name: str) -> str:
    """A name that is one part of a path."""
    return name.replace("/", "_")


if __name__ == "__main__":
    raise SystemExit(main())
